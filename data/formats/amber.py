"""AMBER's files (Wang et al. 2023; github.com/junyangwang0410/AMBER): questions and annotations, by id.

Questions are a JSON list of ``{"id", "image", "query"}``; annotations one of ``{"id", "type", "truth",
"hallu"}``, where ``truth`` is "yes" or "no", or for a description the objects in the picture and ``hallu``
those that models like to add. ``relation.json`` maps a word to the words that mean it; ``safe_words.txt``
holds words that are never counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from data.formats.base import build, by_row, inside, need
from data.jsonl import DataError, Row, read_json, read_text

#: the annotations' types of questions -> what the results call them
DISCRIMINATIVE = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
    "discriminative-relation": "relation",
    "relation": "relation",
}
GENERATIVE = "generative"


class AmberItem(BaseModel):
    """One question with its annotation; ``objects`` and ``tempting`` are empty for a yes/no question."""

    model_config = ConfigDict(extra="forbid")

    id: int
    #: file name of the image, relative to the image root
    image: str
    query: str
    #: "generative", or a value of ``DISCRIMINATIVE``
    type: str
    label: Literal["yes", "no"] | None = None
    objects: list[str] = Field(default_factory=list)
    tempting: list[str] = Field(default_factory=list)


class AmberWords(BaseModel):
    """The benchmark's vocabulary."""

    #: word -> words that mean it
    relation: dict[str, list[str]]
    #: never counted as named
    safe: list[str]

    @property
    def known(self) -> frozenset[str]:
        """Every word that counts as an object."""
        return frozenset(self.relation) | {word for words in self.relation.values() for word in words}


def _annotation(row: Row, value: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    number, kind = need(value, "id", int), need(value, "type", str)
    if kind == GENERATIVE:
        words = {"objects": need(value, "truth", list), "tempting": need(value, "hallu", list)}
        return number, {"type": GENERATIVE, **words}
    if kind not in DISCRIMINATIVE:
        mend = f"use {GENERATIVE} or one of {', '.join(DISCRIMINATIVE)}"
        raise DataError(f"unknown type {kind!r}", key="type", mend=mend)
    return number, {"type": DISCRIMINATIVE[kind], "label": need(value, "truth", str)}


def _query(row: Row, value: dict[str, Any]) -> dict[str, Any]:
    found = {key: need(value, key, int if key == "id" else str) for key in ("id", "image", "query")}
    inside(found["image"], "image")
    return found


def read(queries: str | Path, annotations: str | Path, *, limit: int | None = None) -> list[AmberItem]:
    """The questions of one file, each with its annotation, in the file's order.

    Raises:
        DataError: a bad row, an id that stands twice, or a question without an annotation.
    """
    known: dict[int, dict[str, Any]] = {}
    for row, got in by_row(_annotation)(annotations):
        if isinstance(got, DataError):
            raise got
        number, values = got
        if number in known:
            raise row.locate(DataError(f"annotation {number} stands twice", key="id", mend="keep one"))
        known[number] = values
    items: dict[int, AmberItem] = {}
    for row, got in by_row(_query)(queries):
        if limit is not None and len(items) == limit:
            break
        if isinstance(got, DataError):
            raise got
        if got["id"] in items:
            raise row.locate(DataError(f"question {got['id']} stands twice", key="id", mend="keep one"))
        if got["id"] not in known:
            mend = f"take the annotations of the same release (looked in {annotations})"
            raise row.locate(DataError(f"question {got['id']} has no annotation", key="id", mend=mend))
        try:
            items[got["id"]] = build(AmberItem, **got, **known[got["id"]])
        except DataError as error:
            raise row.locate(error) from None
    return list(items.values())


def read_words(relation: str | Path, safe_words: str | Path) -> AmberWords:
    """The vocabulary from ``relation.json`` and ``safe_words.txt`` (one word a line)."""
    safe = read_text(safe_words).splitlines()
    try:
        return build(AmberWords, relation=read_json(relation), safe=safe)
    except DataError as error:
        raise error if error.file else Row(str(relation)).locate(error) from None
