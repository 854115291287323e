"""POPE's files: one yes/no question about an object a line (Li et al. 2023; github.com/AoiDragon/POPE).

``{"question_id": 1, "image": "COCO_val2014_....jpg", "text": "Is there a ...?", "label": "yes" | "no"}``
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from data.formats.base import Format, build, by_row, inside, named_image
from data.jsonl import DataError, Pairs, Row
from data.schema import Facts, Prompt

SPLITS = ("random", "popular", "adversarial")


class PopeItem(BaseModel):
    """One question. Keys that other distributions add are kept as they are."""

    model_config = ConfigDict(extra="allow")

    question_id: int
    #: file name of the image, relative to the image root
    image: str
    text: str
    label: Literal["yes", "no"]
    #: random, popular or adversarial, where the file's name says so; not part of the file
    split: str | None = Field(default=None, exclude=True)


@functools.lru_cache(maxsize=16)
def split_name(path: str | Path) -> str | None:
    """The split that a file's name ends in (``coco_pope_random.json``, ``random.jsonl``), or None."""
    stem = Path(path).stem.lower()
    return next((split for split in SPLITS if stem.endswith(split)), None)


def _item(row: Row, value: dict[str, Any]) -> PopeItem:
    item = build(PopeItem, **{"split": split_name(row.file), **value})
    inside(item.image, "image")
    return item


def _pairs(path: str | Path) -> Pairs[PopeItem]:
    first: dict[int, int] = {}
    for row, got in by_row(_item)(path):
        if isinstance(got, PopeItem):
            number = first.setdefault(got.question_id, row.number)
            if number != row.number:
                rule = f"question {got.question_id} stands at record {number + 1} already"
                error = DataError(rule, key="question_id", mend="give each question its own number")
                yield row, row.locate(error)
                continue
        yield row, got


def _prompts(path: str | Path) -> Pairs[Prompt]:
    for row, got in _pairs(path):
        yield row, got if isinstance(got, DataError) else _prompt(got)


def _prompt(item: PopeItem) -> Prompt:
    """A question to answer; raises nothing, since what it is made of was checked with the item."""
    return build(
        Prompt,
        id=str(item.question_id),
        image=named_image(item.image),
        question=item.text,
        facts=Facts(answer=item.label),
        answer_type=item.label,
        source="pope",
        split=item.split,
    )


def _row(item: PopeItem) -> dict[str, Any]:
    return item.model_dump(mode="json")


POPE = Format(
    name="pope",
    kind="pope",
    doc="POPE questions: question_id, image, text, label yes/no (JSON lines)",
    parse=_item,
    reader=_pairs,
    row=_row,
    family="pope",
    needs=frozenset({"question_id", "image", "text", "label"}),
    keys=frozenset({"question_id", "image", "text", "label", "split"}),
    lines=True,
)


def _prompt_row(record: Prompt) -> dict[str, Any]:
    """A yes/no prompt as a question. DataError for one without an answer, a number or a picture's path."""
    if record.answer_type not in ("yes", "no"):
        mend = "POPE holds questions whose answer is yes or no"
        raise DataError(f"answer type {record.answer_type!r}", key="answer_type", mend=mend)
    if not re.fullmatch(r"[0-9]{1,18}", record.id):
        raise DataError(f"{record.id!r} is no number", key="id", mend="POPE numbers its questions")
    if record.image is None or record.image.path is None:
        raise DataError("no picture given by its path", key="image", mend="give the file's name")
    row = {"question_id": int(record.id), "image": record.image.path, "text": record.question}
    return row | {"label": record.answer_type}


PROMPTS = Format(
    name="pope_prompts",
    kind="prompt",
    doc="POPE questions as prompts: the label is the answer, and a fact (JSON lines)",
    parse=lambda row, value: _prompt(_item(row, value)),
    reader=_prompts,
    row=_prompt_row,
    lines=True,
    family="pope",
    needs=POPE.needs,
    keys=frozenset({"question_id", "image", "text", "label", "split"}),
)


def read(path: str | Path, *, strict: bool = True, **policy: Any) -> list[PopeItem]:
    """All questions, in order. Strict by default: a benchmark without some of its lines is another one."""
    return POPE.read(path, strict=strict, **policy)


def write(path: str | Path, items: Iterable[PopeItem]) -> int:
    """Write questions as JSON lines; returns how many."""
    return POPE.write(path, items)


def read_prompts(path: str | Path, **policy: Any) -> list[Prompt]:
    """All questions as prompts; ``policy`` as in ``Format.read``."""
    return PROMPTS.read(path, **policy)
