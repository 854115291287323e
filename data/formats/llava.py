"""LLaVA-Instruct JSON <-> Example.

A list of ``{"id", "image", "conversations": [{"from": "human" | "gpt" | "system", "value"}, ...]}``; the
picture's place is the marker ``<image>`` in the first human turn, on a line of its own before or after
the text. Our text does not hold the marker; writing puts it first.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data.formats import samples
from data.formats.base import (
    MARKER,
    Format,
    build,
    image_name,
    markerless,
    need,
    row_id,
    without_marker,
)
from data.formats.pictures import parse_picture
from data.jsonl import DataError, Row
from data.schema import Example, Image, Message

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_NAMES = {"user": "human", "assistant": "gpt", "system": "system"}


def parse_turns(value: dict[str, Any], *, has_image: bool) -> list[Message]:
    """``conversations`` as messages, without the picture's marker. Raises DataError naming the turn."""
    turns = need(value, "conversations", list)
    if len(turns) == 1 and isinstance(turns[0], list):
        turns = turns[0]  # one conversation wrapped into a list of its own, as some files have it
    messages: list[Message] = []
    for i, turn in enumerate(turns):
        where = f"conversations.{i}"
        if not isinstance(turn, dict):
            raise DataError("a turn is not an object", key=where, mend='give {"from": ..., "value": ...}')
        speaker = need(turn, "from", str, where)
        if speaker not in _ROLES:
            rule = f"unknown speaker {speaker!r}"
            raise DataError(rule, key=f"{where}.from", mend="use human, gpt or system")
        text = need(turn, "value", str, where)
        first = _ROLES[speaker] == "user" and all(m.role != "user" for m in messages)
        text = without_marker(text, f"{where}.value", first=first, has_image=has_image)
        messages.append(build(Message, role=_ROLES[speaker], content=text))
    return messages


def turns_to_json(messages: list[Message], image: Image | None) -> list[dict[str, str]]:
    """Messages as ``conversations``, the marker first in the first human turn when there is a picture."""
    turns, marked = [], image is None
    for i, message in enumerate(messages):
        text = markerless(message.content, f"messages.{i}.content")
        if message.role == "user" and not marked:
            text, marked = f"{MARKER}\n{text}", True
        turns.append({"from": _NAMES[message.role], "value": text})
    return turns


def _example(row: Row, value: dict[str, Any]) -> Example:
    image = parse_picture(row, value, ("image",))
    messages = parse_turns(value, has_image=image is not None)
    return build(Example, id=row_id(row, value), image=image, messages=messages)


def _row(record: Example) -> dict[str, Any]:
    image = {"image": image_name(record.image)} if record.image is not None else {}
    return {"id": record.id, **image, "conversations": turns_to_json(record.messages, record.image)}


LLAVA = Format(
    name="llava",
    kind="example",
    doc="LLaVA-Instruct JSON: id, image, conversations of from/value with <image>",
    parse=_example,
    row=_row,
    family="llava",
    needs=frozenset({"conversations"}),
    keys=frozenset({"id", "image", "conversations"}),
    sample=samples.EXAMPLE,
)


def read(path: str | Path, **policy: Any) -> list[Example]:
    """All examples of a LLaVA-Instruct file; ``policy`` as in ``Format.read``."""
    return LLAVA.read(path, **policy)


def write(path: str | Path, records: Iterable[Example]) -> int:
    """Write examples as LLaVA-Instruct JSON; returns how many."""
    return LLAVA.write(path, records)
