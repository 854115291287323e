"""MMBench's table (Liu et al. 2023): one multiple-choice question a row, with its picture in a cell.

Tab-separated: ``index question hint A B C D answer category image`` (the picture as base64). A row may leave
its picture out where an earlier one has it: then ``image`` holds that one's index. Sets whose answers are
kept back have no ``answer``; "nan" in a cell means that it is empty.
"""

from __future__ import annotations

import base64
import binascii
import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.formats.base import Format, build, by_row
from data.jsonl import DataError, Pairs, Row, read_text
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
    #: index of the right option
    answer: int
    category: str = ""
    hint: str = ""
    image: Image | None = field(default=None, repr=False)

    def rotated(self, by: int) -> tuple[tuple[str, ...], str]:
        """The options moved on by ``by`` places, and the letter that is then right."""
        n = len(self.options)
        options = tuple(self.options[(k + by) % n] for k in range(n))
        return options, LETTERS[(self.answer - by) % n]

    def prompt(self, by: int) -> str:
        """The question as a model is asked it."""
        return asked(self.question, self.rotated(by)[0], self.hint)


def asked(question: str, options: Sequence[str], hint: str) -> str:
    """Hint, question and options as lines, in our own wording."""
    lines = [hint] if hint else []
    lines += [question, *(f"{LETTERS[k]}. {text}" for k, text in enumerate(options))]
    return "\n".join([*lines, "Answer with the letter of the right option."])


def read_questions(path: str | Path, *, limit: int | None = None) -> tuple[Choice, ...]:
    """All questions with their answers, from a TSV file.

    Raises:
        DataError: with the line, for a missing column, fewer than two options, an answer that is none of
            them, an index that stands twice, or a picture that is not base64.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    found: list[Choice] = []
    pictures: dict[str, Image | None] = {}
    reader = csv.DictReader(read_text(path).splitlines(keepends=True), delimiter="\t")
    try:
        need = {"index", "question", "A", "B", "answer"}
        if missing := sorted(need - set(reader.fieldnames or ())):
            mend = f"give MMBench's TSV, with {', '.join(sorted(need))}"
            raise DataError(f"no column {missing[0]!r}", file=str(path), line=1, mend=mend)
        for row in reader:
            if limit is not None and len(found) == limit:
                break
            try:
                choice = _choice(row, pictures)
            except DataError as error:
                raise Row(str(path), line=reader.line_num).locate(error) from None
            found.append(choice)
            pictures[choice.id] = choice.image
    except csv.Error as error:
        raise DataError(f"not a TSV file ({error})", file=str(path), mend="give MMBench's TSV") from None
    return tuple(found)


def _choice(row: Mapping[str, str | None], pictures: Mapping[str, Image | None]) -> Choice:
    name = _index((row["index"] or "").strip(), pictures)
    options = _options(row)
    hint = (row.get("hint") or "").strip()
    return Choice(
        id=name,
        question=(row["question"] or "").strip(),
        options=options,
        answer=_answer((row["answer"] or "").strip(), options),
        category=(row.get("category") or "").strip(),
        hint="" if hint.lower() == "nan" else hint,
        image=_image(name, (row.get("image") or "").strip(), pictures),
    )


def _index(name: str, known: Mapping[str, Image | None]) -> str:
    if not name or name in known:
        rule = "the index is empty" if not name else f"index {name} stands twice"
        raise DataError(rule, key="index", mend="give each question its own index")
    return name


def _options(row: Mapping[str, str | None]) -> tuple[str, ...]:
    options = []
    for letter in LETTERS:
        text = (row.get(letter) or "").strip()
        if not text or text.lower() == "nan":
            break
        options.append(text)
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
    # pictures stay in memory, because any later row may refer to one
    pictures: dict[str, Image | None] = {}

    def parse(row: Row, value: dict[str, Any]) -> Prompt:
        prompt = _prompt(value, pictures)
        pictures[prompt.id] = prompt.image
        return prompt

    return by_row(parse)(path)


def _prompt(value: dict[str, Any], pictures: Mapping[str, Image | None]) -> Prompt:
    cells = {key: _cell(value, key) for key in ("index", "question", "hint", "answer", *LETTERS)}
    name = _index(cells["index"], pictures)
    if not cells["question"]:
        raise DataError("the question is empty", key="question", mend="write it into its cell")
    options = _options(cells)
    if astray := [letter for letter in LETTERS[len(options) :] if cells[letter]]:
        rule = f"option {astray[0]} stands behind an empty one"
        raise DataError(rule, key=astray[0], mend="fill the options from A on")
    letter = cells["answer"]
    facts = {"answer": options[_answer(letter, options)]} if letter else {}
    return build(
        Prompt,
        id=name,
        image=_picture(name, value, pictures),
        question=asked(cells["question"], options, cells["hint"]),
        facts=facts,
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
