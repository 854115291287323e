"""A-OKVQA's multiple-choice questions (Schwenk et al. 2022) as conversations about a picture, or as prompts.

Rows of ``{"question_id", "image_id", "question", "choices", "correct_choice_idx", "rationales"}``, of which
the test split lacks the last two, and ``split``. Images are named by number, so their files' names follow a
pattern. An answer is the letter of the right option (``form`` "letter"), or the first rationale and then
the letter ("cot").
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from data.formats.base import Format, build, by_row, named_image, need
from data.formats.coco import need_text
from data.formats.vqa import check_pattern
from data.jsonl import DataError, Pairs, Row
from data.schema import Example, Facts, Image, Message, Prompt

SOURCE = "a_okvqa"
LETTERS = "ABCD"
IMAGE_NAME = "{id:012d}.jpg"
#: what is asked for, by ``form``
REQUESTS = {
    "letter": "Reply with the letter of the right option alone.",
    "cot": "First explain how you decide, then end with the letter of the right option.",
}


class _Question(NamedTuple):
    id: str
    image: int
    name: Image
    #: with the options
    text: str
    letter: str
    #: the right option, such as "B. helmet"
    answer: str
    rationales: list[str]
    split: str | None


def _question(value: dict[str, Any], pattern: str) -> _Question:
    split = None if value.get("split") is None else need(value, "split", str)
    choices = _texts(value, "choices")
    if not 2 <= len(choices) <= len(LETTERS):
        rule = f"{len(choices)} options, where 2 to {len(LETTERS)} are needed"
        raise DataError(rule, key="choices", mend="correct the list")
    if value.get("correct_choice_idx") is None:
        told = f"of split {split!r} " if split else ""
        mend = "take the train or val file (a test split comes without answers)"
        raise DataError(f"the question {told}has no answer", key="correct_choice_idx", mend=mend)
    right = need(value, "correct_choice_idx", int)
    if not 0 <= right < len(choices):
        mend = f"give the index of the right option, 0..{len(choices) - 1}"
        raise DataError(f"no option {right}", key="correct_choice_idx", mend=mend)
    rationales = _texts(value, "rationales")
    if not rationales:
        raise DataError("there are none", key="rationales", mend="give at least one reason")
    options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices)]
    number = need(value, "image_id", int)
    if split is None and "{split}" in pattern:
        rule = "the key is missing, and the images' names hold it"
        raise DataError(rule, key="split", mend="add it, or give image_name without {split}")
    return _Question(
        id=str(need(value, "question_id", (str, int))),
        image=number,
        name=named_image(pattern.format(id=number, split=split), "image_id"),
        text="\n".join([need_text(value, "question"), *options]),
        letter=LETTERS[right],
        answer=options[right],
        rationales=list(dict.fromkeys(rationales)),
        split=split,
    )


def _texts(value: dict[str, Any], key: str) -> list[str]:
    texts = []
    for i, text in enumerate(need(value, key, list)):
        if not isinstance(text, str) or not text.strip():
            raise DataError("no text", key=f"{key}.{i}", mend="give a list of texts")
        texts.append(text.strip())
    return texts


def _asked(path: str | Path, pattern: str, form: str) -> Pairs[_Question]:
    """Each question, or what is wrong with it."""
    check_pattern(pattern, {"split"}, path)
    if form not in REQUESTS:
        rule = f"unknown form {form!r}"
        raise DataError(rule, file=str(path), key="options.form", mend=f"use {' or '.join(REQUESTS)}")
    first: dict[str, int] = {}

    def parse(row: Row, value: dict[str, Any]) -> _Question:
        question = _question(value, pattern)
        number = first.setdefault(question.id, row.number)
        if number != row.number:
            rule = f"question {question.id!r} stands at record {number + 1} already"
            raise DataError(rule, key="question_id", mend="give each question its own id")
        return question

    yield from by_row(parse)(path)


def _answer(question: _Question, form: str) -> str:
    if form == "letter":
        return question.letter
    reason = question.rationales[0]
    # the letter stands in a sentence of its own
    reason = reason if reason.endswith((".", "!", "?")) else f"{reason}."
    return f"{reason} So the right option is {question.letter}."


def _examples(path: str | Path, image_name: str = IMAGE_NAME, form: str = "letter") -> Pairs[Example]:
    by_image: dict[tuple[str | None, str], list[tuple[Row, _Question]]] = {}
    for row, got in _asked(path, image_name, form):
        if isinstance(got, DataError):
            yield row, got
        else:
            by_image.setdefault((got.split, got.name.id), []).append((row, got))
    for rows in by_image.values():
        row, first = rows[0]
        if len(rows) > 1:
            # all of them, so that none is lost when the picture turns out to be missing
            row = Row(row.file, line=row.line, index=row.index, raw=[each.raw for each, _ in rows])
        try:
            yield row, _example([question for _, question in rows], first, form)
        except DataError as error:
            yield row, row.locate(error)


def _example(questions: list[_Question], first: _Question, form: str) -> Example:
    turns: list[Message] = []
    for question in questions:
        turns.append(build(Message, role="user", content=f"{question.text}\n{REQUESTS[form]}"))
        turns.append(build(Message, role="assistant", content=_answer(question, form)))
    reasons = list(dict.fromkeys(reason for question in questions for reason in question.rationales))
    return build(
        Example,
        id=str(first.image),
        image=first.name,
        messages=turns,
        task="multiple_choice",
        facts=Facts(rationales=reasons, answer=first.answer if len(questions) == 1 else None),
        source=SOURCE,
        split=first.split,
    )


def _prompts(path: str | Path, image_name: str = IMAGE_NAME, form: str = "letter") -> Pairs[Prompt]:
    for row, got in _asked(path, image_name, form):
        try:
            yield row, got if isinstance(got, DataError) else _prompt(got, form)
        except DataError as error:
            yield row, row.locate(error)


def _prompt(question: _Question, form: str) -> Prompt:
    return build(
        Prompt,
        id=question.id,
        image=question.name,
        question=f"{question.text}\n{REQUESTS[form]}",
        facts=Facts(rationales=question.rationales, answer=question.answer),
        answer_type=question.letter,
        source=SOURCE,
        split=question.split,
    )


KEYS = frozenset(
    {"question_id", "image_id", "question", "choices", "correct_choice_idx", "rationales", "split"}
)


def _format(name: str, kind: str, doc: str, reader: Callable[..., Pairs[Any]]) -> Format:
    return Format(
        name=name,
        kind=kind,
        doc=doc,
        reader=reader,
        family="a_okvqa",
        needs=frozenset({"question_id", "image_id", "choices", "rationales"}),
        keys=KEYS,
        options={
            "image_name": f"pattern of image file names with {{id}} and {{split}}; {IMAGE_NAME} if not given",
            "form": "letter (the default): the letter alone; cot: a reason first",
        },
    )


EXAMPLES = _format(
    "a_okvqa",
    "example",
    "A-OKVQA: the multiple-choice questions about a picture as one conversation; rationales are facts",
    _examples,
)
PROMPTS = _format(
    "a_okvqa_prompts",
    "prompt",
    "A-OKVQA: one prompt a multiple-choice question, with rationales and the right option as facts",
    _prompts,
)


def read(path: str | Path, **policy: Any) -> list[Example]:
    """All questions of an A-OKVQA file, one example an image; ``policy`` as in ``Format.read``."""
    return EXAMPLES.read(path, **policy)
