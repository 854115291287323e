from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from align.config import SymbolicSettings
from align.rewards import correctness, stated_option, stated_yes_no, symbolic, total
from data.schema import Prompt


def prompt(**changes: Any) -> Prompt:
    return Prompt(id="p", question="What?", **changes)


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("B", "B"),
        ("B.", "B"),
        (" (C) the cup", "C"),
        ("A", "A"),
        ("A. dog", "A"),
        ("A: because it barks", "A"),
        ("The answer is A because it barks.", "A"),
        ("the answer is d", "D"),
        ("Option C.", "C"),
        ("D cup", "D"),
        ("B. It is option B.", "B"),
        ("the answer is a)", "A"),
        ("answer: b", "B"),
        ("Option C", "C"),
        ("The answer is a.", "A"),
        ("option a is right", "A"),
        ("the answer is a because it barks", "A"),
        ("The answer is a\nBecause it barks", "A"),
        ("The answer is a banana.", None),
        ("The answer is a Labrador.", None),
        ("My answer: a cat is in the image.", None),
        ("Answer: A cat is in the image.", None),
        ("I cannot answer a question like this.", None),
        ("The answer is a banana (B).", "B"),
        ("the answer is b or c", None),
        ("A dog is in the image.", None),
        ("A or B", None),
        ("A, B, C, D", None),
        ("E", None),
        ("", None),
        ("Because", None),
    ],
)
def test_stated_option(text: str, option: str | None):
    assert stated_option(text) == option


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        ("No, there is no dog. Yes, a cat.", "no"),
        ("Yes, and there is no dog.", "yes"),
        ("There is no dog.", "no"),
        ("The answer is yes", "yes"),
        ("It could be yes or no", None),
        ("Nothing", None),
        ("A dog. Yes.", None),
        ("", None),
    ],
)
def test_stated_yes_no(text: str, word: str | None):
    assert stated_yes_no(text) == word


def test_correctness_has_the_thesis_values_by_default():
    s = SymbolicSettings()
    assert correctness(prompt(answer_type="B"), "B.", s) == 2
    assert correctness(prompt(answer_type="B"), "C.", s) == 0
    assert correctness(prompt(answer_type="no"), "No, there is not.", s) == 1
    assert correctness(prompt(answer_type="no"), "Yes.", s) == -1
    assert correctness(prompt(answer_type="no"), "Perhaps.", s) == -1
    assert correctness(prompt(answer_type="yes"), "Yes.", s) == 0
    assert correctness(prompt(answer_type="yes"), "No.", s) == 0
    assert correctness(prompt(answer_type="general"), "No.", s) == 0


def test_yes_questions_can_be_rewarded():
    s = SymbolicSettings(correct_yes=0.5)
    assert correctness(prompt(answer_type="yes"), "Yes.", s) == 0.5
    assert correctness(prompt(answer_type="yes"), "No.", s) == -0.5


def test_parts_by_hand():
    prompts = [prompt(), prompt(length_class="detail"), prompt(length_class="complex", answer_type="A")]
    parts = symbolic(prompts, ["x", "y", "A"], [448, 224, 896], [True, False, True], SymbolicSettings(), 896)
    assert {name: part.tolist() for name, part in parts.items()} == {
        "correctness": [0, 0, 2],
        "length": [-5, -10, 2.5],
        "incomplete": [0, -8, 0],
    }


def test_switched_off_parts_are_zero():
    off = SymbolicSettings(correct_choice=0, correct_no=0, length={}, incomplete=0)
    parts = symbolic([prompt(answer_type="no")], ["yes"], [7], [False], off, 10)
    assert all(part.tolist() == [0] for part in parts.values())


def test_total():
    parts = {"length": torch.tensor([-1.0, -2.0]), "incomplete": torch.tensor([0.0, -8.0])}
    assert total(torch.tensor([0.5, 1.0]), parts, scale=10).tolist() == [4.0, 0.0]


def test_faults_name_the_part():
    with pytest.raises(ValueError, match=r"'length' is not finite in rows \[1\]"):
        total(torch.zeros(2), {"length": torch.tensor([0.0, math.nan])})
    with pytest.raises(ValueError, match=r"'score' is not finite in rows \[0\]"):
        total(torch.tensor([math.inf]), {})
    with pytest.raises(ValueError, match=r"'extra' has shape \(1,\)"):
        total(torch.zeros(2), {"extra": torch.zeros(1)})
    with pytest.raises(ValueError, match="max_tokens is 0"):
        symbolic([], [], [], [], SymbolicSettings(), 0)
