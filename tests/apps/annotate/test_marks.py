"""Sentences and marks."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.annotate.errors import Refused
from apps.annotate.marks import MOST, checked, sentences


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("A red cat. A dog!", ["A red cat.", "A dog!"]),
        ("One piece", ["One piece"]),
        ("It costs 3.50 today, e.g. here. Yes.", ["It costs 3.50 today, e.g. here.", "Yes."]),
        ("Mr. Smith sits. J. K. waves?", ["Mr. Smith sits.", "J. K. waves?"]),
        ('He said "Stop!" Then he left.', ['He said "Stop!"', "Then he left."]),
        ("First line\n\n- second\n", ["First line", "- second"]),
        ("Wait... what?! Über 🐈 katze.", ["Wait...", "what?!", "Über 🐈 katze."]),
        ("", []),
        ("  \n ", []),
    ],
)
def test_sentences(text: str, want: list[str]) -> None:
    assert [text[start:end] for start, end in sentences(text)] == want


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab .!?\n\"'E🐈", max_size=60))
def test_sentences_leave_out_nothing_but_space(text: str) -> None:
    spans = sentences(text)
    assert "".join("".join(text[s:e].split()) for s, e in spans) == "".join(text.split())
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    assert all(text[s:e] == text[s:e].strip() != "" for s, e in spans)


def test_checked() -> None:
    text = "abcdefghij"
    assert checked([(5, 7), (0, 2), (6, 9), (9, 10)], text) == [(0, 2), (5, 10)]
    for wrong in ([(0, 11)], [(3, 3)], [(-1, 2)], [(5, 4)], [(0, 1)] * (MOST + 1)):
        with pytest.raises(Refused):
            checked(wrong, text)
