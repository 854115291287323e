"""AMBER's files (Wang et al. 2023; github.com/junyangwang0410/AMBER): questions and annotations, by id.

Questions are a JSON list of ``{"id", "image", "query"}``; annotations one of ``{"id", "type", "truth",
"hallu"}``, where ``truth`` is "yes" or "no", or for a description the objects in the picture and ``hallu``
those that models like to add. Its folder holds ``annotations.json`` and the questions, ``query_*.json``,
there or in a folder ``query`` within; some of those files repeat others' questions. ``relation.json`` maps a
word to the words that mean it; ``safe_words.txt`` holds words that are never counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from data.formats.base import Format, build, by_row, inside, named_image, need
from data.jsonl import DataError, Pairs, Row, read_json, read_text
from data.schema import Facts, Prompt

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
        return number, {
            "type": GENERATIVE,
            "objects": _words(value, "truth"),
            "tempting": _words(value, "hallu"),
        }
    if kind not in DISCRIMINATIVE:
        mend = f"use {GENERATIVE} or one of {', '.join(DISCRIMINATIVE)}"
        raise DataError(f"unknown type {kind!r}", key="type", mend=mend)
    label = need(value, "truth", str)
    if label not in ("yes", "no"):
        raise DataError(f"{label!r}, where yes or no is needed", key="truth", mend="correct the value")
    return number, {"type": DISCRIMINATIVE[kind], "label": label}


def _words(value: dict[str, Any], key: str) -> list[str]:
    for i, word in enumerate(found := need(value, key, list)):
        if not isinstance(word, str):
            raise DataError("not a string", key=f"{key}.{i}", mend="give a list of objects' names")
    return found


def _query(row: Row, value: dict[str, Any]) -> dict[str, Any]:
    found = {key: need(value, key, int if key == "id" else str) for key in ("id", "image", "query")}
    inside(found["image"], "image")
    return found


def _items(queries: Sequence[str | Path], annotations: str | Path) -> Pairs[AmberItem]:
    """The questions of the files in turn, each with its annotation, after the annotations that are bad."""
    known: dict[int, dict[str, Any]] = {}
    for row, got in by_row(_annotation)(annotations):
        if isinstance(got, DataError):
            yield row, got
            continue
        number, values = got
        if number in known:
            yield row, row.locate(DataError(f"annotation {number} stands twice", key="id", mend="keep one"))
            continue
        known[number] = values
    seen: dict[int, tuple[str | Path, dict[str, Any]]] = {}
    for file in queries:
        for row, got in by_row(_query)(file):
            if isinstance(got, DataError):
                yield row, got
                continue
            number = got["id"]
            if number in seen:
                # the same question, in another file: the official folder has one file of all questions too
                if seen[number][0] != file and seen[number][1] == got:
                    continue
                rule = f"question {number} stands twice"
                yield row, row.locate(DataError(rule, key="id", mend="keep one"))
                continue
            seen[number] = (file, got)
            if number not in known:
                mend = f"take the annotations of the same release (looked in {annotations})"
                rule = f"question {number} has no annotation"
                yield row, row.locate(DataError(rule, key="id", mend=mend))
                continue
            yield row, AmberItem(**got, **known[number])


def read(queries: str | Path, annotations: str | Path, *, limit: int | None = None) -> list[AmberItem]:
    """The questions of one file, each with its annotation, in the file's order.

    Raises:
        DataError: a bad row, an id that stands twice, or a question without an annotation.
    """
    items: list[AmberItem] = []
    for _, got in _items([queries], annotations):
        if limit is not None and len(items) == limit:
            break
        if isinstance(got, DataError):
            raise got
        items.append(got)
    return items


def _folder(path: str | Path) -> Pairs[Prompt]:
    folder = Path(path)
    if not folder.is_dir():
        mend = "give AMBER's folder, with annotations.json and query_*.json"
        raise DataError("no folder", file=str(path), mend=mend)
    queries = [file for place in (folder, folder / "query") for file in sorted(place.glob("query_*.json"))]
    if not queries:
        rule = "no questions (query_*.json) in it, nor in a folder query within"
        raise DataError(rule, file=str(path), mend="add them from the release of the annotations")
    for row, got in _items(queries, folder / "annotations.json"):
        yield row, got if isinstance(got, DataError) else _prompt(got)


def _prompt(item: AmberItem) -> Prompt:
    """A question to answer; raises nothing, since what it is made of was checked with the item."""
    return build(
        Prompt,
        id=str(item.id),
        image=named_image(item.image),
        question=item.query,
        facts=Facts(objects=item.objects, answer=item.label),
        answer_type=item.label or "general",
        length_class="detail" if item.type == GENERATIVE else "general",
        source="amber",
    )


AMBER = Format(
    name="amber",
    kind="prompt",
    doc="AMBER's folder: annotations.json and query_*.json; objects of the picture or the answer are facts",
    reader=_folder,
    family="amber",
    holder="folder",
    needs=frozenset({"annotations.json", "relation.json"}),
    keys=frozenset({"id", "image", "query", "type", "truth"}),
)


def read_prompts(path: str | Path, **policy: Any) -> list[Prompt]:
    """All questions of a folder as prompts; ``policy`` as in ``Format.read``."""
    return AMBER.read(path, **policy)


def read_words(relation: str | Path, safe_words: str | Path) -> AmberWords:
    """The vocabulary from ``relation.json`` and ``safe_words.txt`` (one word a line)."""
    safe = read_text(safe_words).splitlines()
    try:
        return build(AmberWords, relation=read_json(relation), safe=safe)
    except DataError as error:
        raise error if error.file else Row(str(relation)).locate(error) from None
