"""MMHal-Bench's template and response files: a JSON list of open questions (thesis, section 9.5).

The position in the list carries meaning: the official scorer takes an item's type from its index
modulo 8. So reading never drops an item, and each item knows its index.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from data.formats.base import Format, build, named_image
from data.jsonl import Row
from data.schema import Facts, Prompt


class MmhalItem(BaseModel):
    """One question with its human answer. ``model_answer`` is empty in the template. Other keys are kept."""

    model_config = ConfigDict(extra="allow")

    question_type: str
    question_topic: str
    image_id: str
    #: address or path of the image
    image_src: str
    #: names of the objects in the image
    image_content: list[str]
    question: str
    gt_answer: str
    model_answer: str = ""
    #: 0-based position in the file; not part of the file
    index: int | None = Field(default=None, exclude=True)


def _item(row: Row, value: dict[str, Any]) -> MmhalItem:
    # Parquet has a null where a file has no answer yet
    given = {k: v for k, v in value.items() if not (k == "model_answer" and v is None)}
    return build(MmhalItem, **{**given, "index": row.number})


def _prompt(row: Row, value: dict[str, Any]) -> Prompt:
    item = _item(row, value)
    return build(
        Prompt,
        id=str(item.index),
        image=named_image(item.image_src, "image_src"),
        question=item.question,
        facts=Facts(objects=item.image_content, answer=item.gt_answer),
        source="mmhal",
    )


def _row(item: MmhalItem) -> dict[str, Any]:
    return item.model_dump(mode="json")


MMHAL = Format(
    name="mmhal",
    kind="mmhal",
    doc="MMHal-Bench template or responses: a JSON list of questions with answers and image contents",
    parse=_item,
    row=_row,
    family="mmhal",
    needs=frozenset({"question_type", "question_topic", "image_src", "question", "gt_answer"}),
    keys=frozenset(MmhalItem.model_fields),
)

PROMPTS = Format(
    name="mmhal_prompts",
    kind="prompt",
    doc="MMHal-Bench questions as prompts: image contents and the human answer are facts",
    parse=_prompt,
    family="mmhal",
    needs=MMHAL.needs,
    keys=frozenset({"image_src", "image_content", "question", "gt_answer"}),
)


def read(path: str | Path, *, limit: int | None = None) -> list[MmhalItem]:
    """All items, in order; the first bad one raises DataError, because the position is an item's type."""
    return MMHAL.read(path, strict=True, limit=limit)


def write(path: str | Path, items: Iterable[MmhalItem]) -> int:
    """Write items as one JSON list (lines where the name ends in .jsonl); returns how many."""
    return MMHAL.write(path, items)


def read_prompts(path: str | Path, **policy: Any) -> list[Prompt]:
    """All questions as prompts, whose id is the position in the file; ``policy`` as in ``Format.read``."""
    return PROMPTS.read(path, **policy)
