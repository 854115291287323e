"""Conversations as what reinforcement learning rolls out from: their first questions (thesis, 9.3)."""

from __future__ import annotations

import re
from typing import cast

from data.errors import DataError, Pairs
from data.schema import AnswerType, Example, LengthClass, Prompt

_OPTION = re.compile(r"([A-D])[.)]?", re.ASCII)


def first_question(example: Example, length_class: LengthClass = "general") -> Prompt:
    """The first question of a conversation with its facts; later turns may rest on false answers.

    A first answer that is yes, no or an option's letter becomes the answer type.
    """
    turns = example.messages[1:] if example.messages[0].role == "system" else example.messages
    said = short_answer(turns[1].content)
    return Prompt(
        id=example.id,
        image=example.image,
        question=turns[0].content,
        facts=example.facts,
        answer_type=cast(AnswerType, "general" if said == "other" else said),
        length_class=length_class,
        source=example.source,
        split=example.split,
    )


def short_answer(text: str) -> str:
    """ "yes", "no", an option's letter, or "other"."""
    word = text.strip().rstrip(".!").lower()
    if word in ("yes", "no"):
        return word
    option = _OPTION.fullmatch(text.strip())
    return option[1] if option else "other"


def as_prompts(pairs: Pairs, length_class: LengthClass = "general") -> Pairs:
    """The examples of a reading pipeline as prompts; prompts pass, other records become errors."""
    for row, got in pairs:
        if isinstance(got, Example):
            yield row, first_question(got, length_class)
        elif isinstance(got, DataError | Prompt):
            yield row, got
        else:
            rule = f"a record of kind {getattr(got, 'kind', type(got).__name__)!r} is no conversation"
            mend = "prompts are made of conversations (examples); leave out --prompts, or try --kind prompt"
            yield row, row.locate(DataError(rule, mend=mend))
