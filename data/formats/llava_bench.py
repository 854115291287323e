"""LLaVA-Bench's files (Liu et al. 2023): questions, reference answers, and what texts tell of the images.

JSON lines: ``question_id, image, text, category`` (conv, detail or complex); references ``question_id,
text``; and of each image ``image`` with ``captions`` and ``instances`` (``category``, ``bbox``), as COCO has
them, or with one ``caption`` (LLaVA-Bench in the wild).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from data.formats.base import Format, build, by_row, inside, named_image, need
from data.jsonl import DataError, Pairs, Row
from data.schema import Facts, LengthClass, Prompt

T = TypeVar("T")
LENGTH_CLASSES: dict[str, LengthClass] = {"conv": "general", "detail": "detail", "complex": "complex"}


@dataclass(frozen=True)
class LlavaBenchItem:
    """One question with its reference answer and what is known of its picture."""

    id: str
    #: file name of the image, relative to the image root
    image: str
    question: str
    category: str
    reference: str
    context: str


@dataclass(frozen=True)
class Description:
    """What a text tells of one picture: captions, and (object's name, box) of what was marked in it."""

    image: str
    captions: list[str]
    boxes: list[tuple[str, list[Any]]]

    @property
    def context(self) -> str:
        """As a judge reads it."""
        return "\n".join([*self.captions, *(f"{name}: {box}" for name, box in self.boxes)])

    @property
    def facts(self) -> Facts:
        """The captions, and each object's name once."""
        return Facts(captions=self.captions, objects=list(dict.fromkeys(name for name, _ in self.boxes)))


def _number(value: dict[str, Any]) -> str:
    return str(need(value, "question_id", (int, str)))


def _description(row: Row, value: dict[str, Any]) -> Description:
    image = need(value, "image", str)
    if "caption" in value:
        return Description(image, [need(value, "caption", str)], [])
    captions = need(value, "captions", list) if "captions" in value else []
    for i, text in enumerate(captions):
        if not isinstance(text, str):
            raise DataError("not a string", key=f"captions.{i}", mend="give a list of strings")
    boxes = []
    for i, box in enumerate(need(value, "instances", list) if "instances" in value else []):
        if not isinstance(box, dict):
            raise DataError("not an object", key=f"instances.{i}", mend='give {"category", "bbox"}')
        where = f"instances.{i}"
        boxes.append((need(box, "category", str, where), need(box, "bbox", list, where)))
    return Description(image, captions, boxes)


def read_questions(
    questions: str | Path, references: str | Path, context: str | Path, *, limit: int | None = None
) -> tuple[LlavaBenchItem, ...]:
    """LLaVA-Bench with its answers.

    Args:
        questions: ``question_id, image, text, category``. references: ``question_id, text``.
        context: ``image`` with ``captions`` and ``instances`` (COCO), or ``caption`` (in the wild).

    Raises:
        DataError: a bad row, a question that stands twice, or one without reference or context.
    """
    told = {found.image: found.context for found in _all(context, _description)}
    known = dict(_all(references, lambda _, value: (_number(value), need(value, "text", str))))

    def parse(row: Row, value: dict[str, Any]) -> LlavaBenchItem:
        number, image = _number(value), need(value, "image", str)
        inside(image, "image")
        for what, where, key, file in (
            ("reference answer", known, number, references),
            ("context", told, image, context),
        ):
            if key not in where:
                mend = f"add it to {file}, or take the question out"
                raise DataError(f"question {number} has no {what}", key="question_id", mend=mend)
        return LlavaBenchItem(
            id=number,
            image=image,
            question=need(value, "text", str),
            category=need(value, "category", str),
            reference=known[number],
            context=told[image],
        )

    items = _all(questions, parse)[:limit]
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            rule = f"question {item.id} stands twice"
            raise DataError(rule, file=str(questions), key="question_id", mend="keep one")
        seen.add(item.id)
    return tuple(items)


def _all(path: str | Path, parse: Callable[[Row, dict[str, Any]], T]) -> list[T]:
    found = []
    for _, got in by_row(parse)(path):
        if isinstance(got, DataError):
            raise got
        found.append(got)
    return found


def _prompts(path: str | Path, captions: str | None = None) -> Pairs[Prompt]:
    told: dict[str, Facts] = {}
    for row, got in by_row(_description)(captions) if captions is not None else ():
        if isinstance(got, DataError):
            yield row, got
        elif got.image in told:
            rule = f"image {got.image!r} stands twice"
            yield row, row.locate(DataError(rule, key="image", mend="keep one"))
        elif not got.facts:
            rule = f"nothing is told of image {got.image!r}"
            yield (
                row,
                row.locate(DataError(rule, key="captions", mend="add captions, a caption or instances")),
            )
        else:
            told[got.image] = got.facts
    seen: set[str] = set()

    def parse(row: Row, value: dict[str, Any]) -> Prompt:
        number, image = _number(value), need(value, "image", str)
        if number in seen:
            rule = f"question {number} stands twice"
            raise DataError(rule, key="question_id", mend="give each question its own number")
        seen.add(number)
        if captions is not None and image not in told:
            mend = f"add it to {captions}, or take the question out"
            raise DataError(f"no captions of image {image!r}", key="image", mend=mend)
        return build(
            Prompt,
            id=number,
            image=named_image(image),
            question=need(value, "text", str),
            facts=told.get(image, Facts()),
            length_class=_length_class(need(value, "category", str)),
            source="llava_bench",
        )

    yield from by_row(parse)(path)


def _length_class(category: str) -> LengthClass:
    if category not in LENGTH_CLASSES:
        mend = f"use one of {', '.join(LENGTH_CLASSES)}"
        raise DataError(f"unknown category {category!r}", key="category", mend=mend)
    return LENGTH_CLASSES[category]


PROMPTS = Format(
    name="llava_bench",
    kind="prompt",
    doc="LLaVA-Bench questions: question_id, image, text, category (conv, detail or complex); JSON lines",
    reader=_prompts,
    family="llava_bench",
    needs=frozenset({"question_id", "image", "text", "category"}),
    keys=frozenset({"question_id", "image", "text", "category"}),
    options={"captions": "the images' caps_boxes JSON lines, whose captions and objects become facts"},
)


def read_prompts(path: str | Path, **policy: Any) -> list[Prompt]:
    """All questions as prompts; ``policy`` as in ``Format.read``."""
    return PROMPTS.read(path, **policy)
