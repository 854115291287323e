"""VQA-v2's yes/no questions (Goyal et al. 2017) as conversations about a picture, or as prompts.

Two JSON objects belong together: ``questions`` (``{"question_id", "image_id", "question"}``, with the split
at the top under ``data_subtype``) and ``annotations`` of them (``{"question_id", "answer_type",
"multiple_choice_answer"}``). Images are named by number, so their files' names follow a pattern. Questions
of other kinds are left out and, unless the option ``balance`` is false, as many more as make "yes" and "no"
equally frequent.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Generator
from hashlib import sha256
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple, TypeAlias

from data.formats.base import Format, build, named_image, need
from data.formats.coco import Id, members, need_text
from data.jsonl import DataError, Pairs, Row
from data.schema import Example, Facts, Image, Message, Prompt

log = logging.getLogger(__name__)

SOURCE = "vqa_v2"
REQUEST = "Please reply with yes or no only."
#: the files' names of COCO 2014, which VQA-v2 asks about
IMAGE_NAME = "COCO_{subtype}_{id:012d}.jpg"

#: bad records as they are met, and what was read when all are through
Errors: TypeAlias = Generator[tuple[Row, DataError], None, Any]


class _Question(NamedTuple):
    #: position in "questions"
    place: int
    id: Id
    image: int
    text: str
    #: "yes" or "no"
    answer: str


class _Asked(NamedTuple):
    questions: list[_Question]
    #: the split that the file names
    subtype: str | None


def check_pattern(pattern: str, fields: Collection[str], file: str | Path) -> None:
    """Raise DataError for a pattern of image names without ``{id}``, or with what is none of ``fields``.

    ``{id}`` may have a width, such as ``{id:012d}``.
    """
    try:
        parts = [part[1:] for part in Formatter().parse(pattern) if part[1] is not None]
        names = {name for name, _, _ in parts}
        fine = "id" in names and names <= {"id", *fields}
        for name, spec, conversion in parts:
            allowed = r"(0?[1-9][0-9]?)?d?" if name == "id" else ""
            fine = fine and conversion is None and re.fullmatch(allowed, spec or "") is not None
    except ValueError:
        fine = False
    if not fine:
        more = "".join(f" and {{{name}}}" for name in fields)
        mend = f"use {{id}}, with a width as in {{id:012d}}{more}, and no other braces"
        raise DataError(f"no pattern: {pattern!r}", file=str(file), key="options.image_name", mend=mend)


def _read_annotations(path: str | Path) -> Errors:
    """Question id -> "yes", "no", or None for a question of another kind."""
    answers: dict[Id, str | None] = {}
    met = False
    for _, where, row, value in members(path, {"annotations"}):
        met = True
        if isinstance(value, DataError):
            yield row, value
            continue
        try:
            number = need(value, "question_id", (int, str), where)
            if number in answers:
                rule = f"question {number!r} has an annotation already"
                raise DataError(rule, key=f"{where}.question_id", mend="keep one")
            # known even if the rest is wrong, so that the question is not told as wrong too
            answers[number] = None
            if need(value, "answer_type", str, where) == "yes/no":
                answer = need(value, "multiple_choice_answer", str, where).strip().lower()
                answers[number] = {"yes": "yes", "no": "no"}.get(answer)
        except DataError as error:
            yield row, row.locate(error)
    if not met:
        raise DataError("there are none", file=str(path), key="annotations", mend="give the annotations file")
    return answers


def _read_questions(path: str | Path, answers: dict[Id, str | None]) -> Errors:
    """The yes/no questions as ``_Asked``, in the file's order."""
    asked: list[_Question] = []
    subtype: str | None = None
    seen: set[Id] = set()
    for key, where, row, value in members(path, {"questions"}, {"data_subtype"}):
        if key == "data_subtype":
            if not isinstance(value, str):
                raise DataError("not a string", file=str(path), key=key, mend="name the split, as train2014")
            subtype = value
            continue
        if isinstance(value, DataError):
            yield row, value
            continue
        try:
            number = need(value, "question_id", (int, str), where)
            if number in seen:
                rule = f"question {number!r} stands twice"
                raise DataError(rule, key=f"{where}.question_id", mend="keep one")
            seen.add(number)
            image, text = need(value, "image_id", int, where), need_text(value, "question", where)
            if number not in answers:
                mend = "give the annotations of the same split"
                rule = f"question {number!r} has no annotation"
                raise DataError(rule, key=f"{where}.question_id", mend=mend)
            answer = answers[number]
            if answer is not None:
                asked.append(_Question(row.number, number, image, text, answer))
        except DataError as error:
            yield row, row.locate(error)
    if len(seen) > len(asked):
        # a warning, because it is shown: this is most of the file
        log.warning("%s: %d of %d questions are answered by yes or no, the others left out",
                    path, len(asked), len(seen))  # fmt: skip
    return _Asked(asked, subtype)


def _balanced(questions: list[_Question]) -> list[_Question]:
    """As many yes as no: of the more frequent, those whose ids have the smallest hashes stay."""
    count = Counter(question.answer for question in questions)
    few = min(count["yes"], count["no"])
    kept: set[Id] = set()
    for answer in ("yes", "no"):
        ids = [question.id for question in questions if question.answer == answer]
        ids.sort(key=lambda number: sha256(str(number).encode()).digest())
        kept.update(ids[:few])
    return [question for question in questions if question.id in kept]


def _asked(path: str | Path, annotations: str | Path, image_name: str, balance: str) -> Errors:
    """The questions that stay as ``_Asked``; yields what is wrong in the two files."""
    check_pattern(image_name, {"subtype"}, path)
    if balance not in ("true", "false"):
        rule = f"{balance!r}, where true or false is needed"
        raise DataError(rule, file=str(path), key="options.balance", mend="choose one")
    answers = yield from _read_annotations(annotations)
    asked = yield from _read_questions(path, answers)
    if asked.subtype is None and "{subtype}" in image_name:
        mend = "add it (as train2014), or give image_name without {subtype}"
        raise DataError("the key is missing", file=str(path), key="data_subtype", mend=mend)
    if balance == "false":
        return asked
    kept = _balanced(asked.questions)
    if len(kept) < len(asked.questions):
        words = "%s: %d of %d yes/no questions are kept, as many yes as no (balance=false keeps all)"
        log.warning(words, path, len(kept), len(asked.questions))
    return _Asked(kept, asked.subtype)


def _image(question: _Question, pattern: str, subtype: str | None) -> Image:
    name = pattern.format(id=question.image, subtype=subtype)
    return named_image(name, f"questions.{question.place}.image_id")


def _row(path: str | Path, questions: list[_Question]) -> Row:
    raw = [{"question_id": q.id, "image_id": q.image, "question": q.text} for q in questions]
    return Row(str(path), index=questions[0].place, raw=raw if len(raw) > 1 else raw[0])


def _examples(
    path: str | Path, annotations: str | Path, image_name: str = IMAGE_NAME, balance: str = "true"
) -> Pairs[Example]:
    asked = yield from _asked(path, annotations, image_name, balance)
    by_image: dict[int, list[_Question]] = {}
    for question in asked.questions:
        by_image.setdefault(question.image, []).append(question)
    for questions in by_image.values():
        row = _row(path, questions)
        try:
            yield row, _example(questions, image_name, asked.subtype)
        except DataError as error:
            yield row, row.locate(error)


def _example(questions: list[_Question], pattern: str, subtype: str | None) -> Example:
    turns: list[Message] = []
    for question in questions:
        text = question.text if turns else f"{question.text}\n{REQUEST}"
        turns.append(build(Message, role="user", content=text))
        turns.append(build(Message, role="assistant", content=question.answer.capitalize()))
    name, image = str(questions[0].image), _image(questions[0], pattern, subtype)
    about = {"task": "yes_no", "source": SOURCE, "split": subtype}
    return build(Example, id=name, image=image, messages=turns, **about)


def _prompts(
    path: str | Path, annotations: str | Path, image_name: str = IMAGE_NAME, balance: str = "true"
) -> Pairs[Prompt]:
    asked = yield from _asked(path, annotations, image_name, balance)
    for question in asked.questions:
        row = _row(path, [question])
        try:
            yield row, _prompt(question, image_name, asked.subtype)
        except DataError as error:
            yield row, row.locate(error)


def _prompt(question: _Question, pattern: str, subtype: str | None) -> Prompt:
    return build(
        Prompt,
        id=str(question.id),
        image=_image(question, pattern, subtype),
        question=f"{question.text}\n{REQUEST}",
        facts=Facts(answer=question.answer),
        answer_type=question.answer,
        source=SOURCE,
        split=subtype,
    )


_OPTIONS = {
    "annotations": "the annotations file of the same split",
    "image_name": f"pattern of the images' file names with {{id}} and {{subtype}}; {IMAGE_NAME} if not given",
    "balance": "true (the default): as many yes as no; false: every yes/no question",
}
_NEEDS = frozenset({"questions.question_id", "questions.image_id", "questions.question"})
_KEYS = frozenset({"questions", "data_subtype"})

EXAMPLES = Format(
    name="vqa_v2",
    kind="example",
    doc="VQA-v2 questions: the yes/no questions about a picture as one conversation, balanced",
    reader=_examples,
    family="vqa_v2",
    holder="object",
    needs=_NEEDS,
    keys=_KEYS,
    options=_OPTIONS,
    required=frozenset({"annotations"}),
)

PROMPTS = Format(
    name="vqa_v2_prompts",
    kind="prompt",
    doc="VQA-v2 questions: one prompt a yes/no question, balanced, with the right answer as answer type",
    reader=_prompts,
    family="vqa_v2",
    holder="object",
    needs=_NEEDS,
    keys=_KEYS,
    options=_OPTIONS,
    required=frozenset({"annotations"}),
)


def read(path: str | Path, annotations: str | Path, **policy: Any) -> list[Example]:
    """The yes/no questions of a VQA-v2 file, one example an image; ``policy`` as in ``Format.read``."""
    return EXAMPLES.read(path, options={"annotations": str(annotations)}, **policy)
