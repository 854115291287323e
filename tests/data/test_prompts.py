"""First questions of conversations."""

from __future__ import annotations

import pytest

from data.prompts import first_question, short_answer
from data.schema import Example, Facts, Image, Message, Prompt


def conversation(*turns: str, system: str | None = None) -> Example:
    messages = [Message(role=("user", "assistant")[k % 2], content=text) for k, text in enumerate(turns)]
    if system is not None:
        messages.insert(0, Message(role="system", content=system))
    image = Image(id="a.png", path="a.png")
    facts = Facts(captions=["c"])
    return Example(id="x", image=image, messages=messages, facts=facts, source="s", split="train")


def test_the_first_question_with_its_facts() -> None:
    found = first_question(conversation("Q1", "A long one.", "Q2", "Yes", system="Be brief."), "detail")
    assert found == Prompt(
        id="x", image=Image(id="a.png", path="a.png"), question="Q1", facts=Facts(captions=["c"]),
        answer_type="general", length_class="detail", source="s", split="train",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "kind"), [("Yes.", "yes"), ("no", "no"), ("B", "B"), ("It is.", "general")]
)
def test_answer_types(answer: str, kind: str) -> None:
    assert first_question(conversation("Q", answer)).answer_type == kind


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Yes", "yes"),
        (" no. ", "no"),
        ("B", "B"),
        ("C)", "C"),
        ("D.", "D"),
        ("Yes, it is", "other"),
        ("E", "other"),
    ],
)
def test_short_answers(text: str, word: str) -> None:
    assert short_answer(text) == word
