"""MMHal-Bench's template and response files: a JSON list of open questions (thesis, section 9.5).

The position in the list carries meaning: the official scorer takes an item's type from its index
modulo 8. So reading never drops an item, and each item knows its index.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from data.formats.base import Format, build
from data.jsonl import Row


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
    return build(MmhalItem, **{**value, "index": row.number})


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


def read(path: str | Path, *, limit: int | None = None) -> list[MmhalItem]:
    """All items, in order; the first bad one raises DataError, because the position is an item's type."""
    return MMHAL.read(path, strict=True, limit=limit)


def write(path: str | Path, items: Iterable[MmhalItem]) -> int:
    """Write items as one JSON list (lines where the name ends in .jsonl); returns how many."""
    return MMHAL.write(path, items)
