from __future__ import annotations

import importlib.util

import pytest

from data.jsonl import DataError
from evals.nouns import SpacyFinder, WordFinder, finder, singulars


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        ("cups", "cup"), ("benches", "bench"), ("boxes", "box"), ("berries", "berry"), ("women", "woman"),
        ("Knives", "Knife"), ("glasses", "glass"), ("buses", "bus"), ("dog", "dog"), ("grass", "grass"),
    ],
)  # fmt: skip
def test_the_singular_comes_first(plural: str, singular: str) -> None:
    assert singulars(plural)[0] == singular
    assert singulars(plural)[-1] == plural


def test_words_are_taken_in_the_form_that_the_vocabulary_has() -> None:
    nouns = WordFinder({"glasses", "horse", "traffic light", "sky"}).nouns
    # "horses" could be "hors" + "es"; the vocabulary's form is taken, whichever ending gives it
    assert [n for n in nouns("Two horses with glasses under a sky") if n in ("horse", "glasses", "sky")] == [
        "horse",
        "glasses",
        "sky",
    ]
    # capitals are kept: whether they matter is the scorer's rule
    assert nouns("Sky") == ["Sky"]


def test_without_spacy_words_are_the_fallback_and_the_name_says_so() -> None:
    if importlib.util.find_spec("spacy") is not None:
        pytest.skip("spaCy is installed")
    assert "no tagger" in finder({"cup"}).name
    with pytest.raises(DataError, match="spaCy is not installed"):
        SpacyFinder()
