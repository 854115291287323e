"""MMBench's table (Liu et al. 2023): one multiple-choice question a row, with its picture in a cell.

Tab-separated: ``index question hint A B C D answer category image`` (the picture as base64). A row may leave
its picture out where an earlier one has it: then ``image`` holds that one's index. Sets whose answers are
kept back have no ``answer``; "nan" in a cell means that it is empty.
"""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.formats.base import Format, build, by_row
from data.jsonl import DataError, Pairs, Row
from data.schema import AnswerType, Image, Prompt

LETTERS = "ABCDEFGH"
#: the right letters that ``Prompt`` has answer types for
_TYPES: dict[str, AnswerType] = {"A": "A", "B": "B", "C": "C", "D": "D"}


@dataclass(frozen=True)
class Choice:
    """One question with its options in the file's order."""

    id: str
    question: str
    options: tuple[str, ...]
    #: index of the right option; None where the file keeps it back, which ``read_questions`` refuses
    answer: int | None
    category: str = ""
    hint: str = ""
    image: Image | None = field(default=None, repr=False)

    def rotated(self, by: int) -> tuple[tuple[str, ...], str]:
        """The options moved on by ``by`` places, and the letter that is then right."""
        n = len(self.options)
        options = tuple(self.options[(k + by) % n] for k in range(n))
        assert self.answer is not None, self.id
        return options, LETTERS[(self.answer - by) % n]

    def prompt(self, by: int) -> str:
        """The question as a model is asked it."""
        n = len(self.options)
        return asked(self.question, [self.options[(k + by) % n] for k in range(n)], self.hint)


def asked(question: str, options: Sequence[str], hint: str) -> str:
    """Hint, question and options as lines, in our own wording."""
    lines = [hint] if hint else []
    lines += [question, *(f"{LETTERS[k]}. {text}" for k, text in enumerate(options))]
    return "\n".join([*lines, "Answer with the letter of the right option."])


def read_questions(path: str | Path, *, limit: int | None = None) -> tuple[Choice, ...]:
    """All questions with their answers.

    Raises:
        DataError: at its row, for a missing column, fewer than two options, an answer that is none of
            them, an index that stands twice, or a picture that is not base64.
    """
    found: list[Choice] = []
    for row, got in itertools.islice(_choices(path), limit):
        if isinstance(got, DataError):
            raise got
        if got.answer is None:
            told = "no column 'answer'" if "answer" not in row.raw else "answer '' is none of the options"
            raise row.locate(DataError(told, key="answer", mend="take the file that has the answers"))
        found.append(got)
    return tuple(found)


def _choices(path: str | Path) -> Pairs[Choice]:
    # pictures stay in memory, because any later row may refer to one
    pictures: dict[str, Image | None] = {}

    def parse(row: Row, value: dict[str, Any]) -> Choice:
        choice = _choice(value, pictures)
        pictures[choice.id] = choice.image
        return choice

    return by_row(parse)(path)


def _choice(value: dict[str, Any], pictures: Mapping[str, Image | None]) -> Choice:
    for column in ("index", "question", "A", "B"):
        if column not in value:
            mend = "give MMBench's table, with index, question, A, B and answer"
            raise DataError(f"no column {column!r}", key=column, mend=mend)
    cells = {key: _cell(value, key) for key in ("index", "question", "hint", "answer", "category", *LETTERS)}
    name = _index(cells["index"], pictures)
    if not cells["question"]:
        raise DataError("the question is empty", key="question", mend="write it into its cell")
    options = _options(cells)
    if astray := [letter for letter in LETTERS[len(options) :] if cells[letter]]:
        rule = f"option {astray[0]} stands behind an empty one"
        raise DataError(rule, key=astray[0], mend="fill the options from A on")
    return Choice(
        id=name,
        question=cells["question"],
        options=options,
        answer=_answer(cells["answer"], options) if cells["answer"] else None,
        category=cells["category"],
        hint=cells["hint"],
        image=_picture(name, value, pictures),
    )


def _index(name: str, known: Mapping[str, Image | None]) -> str:
    if not name or name in known:
        rule = "the index is empty" if not name else f"index {name} stands twice"
        raise DataError(rule, key="index", mend="give each question its own index")
    return name


def _options(cells: Mapping[str, str]) -> tuple[str, ...]:
    options = list(itertools.takewhile(bool, (cells[letter] for letter in LETTERS)))
    if len(options) < 2:
        raise DataError(f"{len(options)} options", key="A", mend="give at least A and B")
    return tuple(options)


def _answer(letter: str, options: Sequence[str]) -> int:
    """The position of the right option."""
    if letter not in LETTERS[: len(options)] or len(letter) != 1:
        mend = f"use one of {', '.join(LETTERS[: len(options)])}"
        raise DataError(f"answer {letter!r} is none of the options", key="answer", mend=mend)
    return LETTERS.index(letter)


def _image(name: str, text: str, pictures: Mapping[str, Image | None]) -> Image | None:
    if not text:
        return None
    if text in pictures:
        return pictures[text]
    try:
        return Image(id=name, data=base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        rule = "the picture is not base64, nor the index of an earlier question"
        raise DataError(rule, key="image", mend="give the encoded file's bytes as base64") from None


def _prompts(path: str | Path) -> Pairs[Prompt]:
    for row, got in _choices(path):
        yield row, got if isinstance(got, DataError) else _prompt(got)


def _prompt(choice: Choice) -> Prompt:
    known = {} if choice.answer is None else {"answer": choice.options[choice.answer]}
    letter = "" if choice.answer is None else LETTERS[choice.answer]
    return build(
        Prompt,
        id=choice.id,
        image=choice.image,
        question=choice.prompt(0),
        facts=known,
        answer_type=_TYPES.get(letter, "general"),
        source="mmbench",
    )


def _cell(value: dict[str, Any], key: str) -> str:
    """A cell's text, "" for an empty one. JSON and Parquet may hold numbers, and NaN for what is empty."""
    found = value.get(key)
    if found is None or found != found:
        return ""
    if isinstance(found, bool) or not isinstance(found, (str, int)):
        rule = f"a value of type {type(found).__name__}, where text is needed"
        raise DataError(rule, key=key, mend="write it as text")
    text = str(found).strip()
    return "" if text.lower() == "nan" else text


def _picture(name: str, value: dict[str, Any], pictures: Mapping[str, Image | None]) -> Image | None:
    """The picture of a cell: base64, bytes or ``{"bytes"}`` (Parquet), or an earlier question's index."""
    found = value.get("image")
    if isinstance(found, dict):
        found = found.get("bytes")
    if isinstance(found, bytes):
        return build(Image, id=name, data=found)
    text = _cell({"image": found}, "image")
    # figures alone would pass as base64
    if text.isdigit() and pictures.get(text) is None:
        rule = f"no earlier question {text} with a picture"
        raise DataError(rule, key="image", mend="put the picture itself here, as base64")
    return _image(name, text, pictures)


MMBENCH = Format(
    name="mmbench",
    kind="prompt",
    doc="MMBench's table (TSV): index, question, hint, options A to D, answer, image in base64",
    reader=_prompts,
    family="mmbench",
    needs=frozenset({"index", "question", "A", "B"}),
    keys=frozenset({"index", "question", "hint", "answer", "image", *LETTERS}),
)


def read_prompts(path: str | Path, **policy: Any) -> list[Prompt]:
    """All questions as prompts; ``policy`` as in ``Format.read``."""
    return MMBENCH.read(path, **policy)
