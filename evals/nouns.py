"""The nouns that a text names, for benchmarks that count them: by a tagger if one is there, else by words.

A figure that counts nouns depends on the tagger, so every result carries the finder's name.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

from data.jsonl import DataError


class NounFinder(Protocol):
    """The nouns of a text, and how near two words are in meaning."""

    @property
    def name(self) -> str: ...

    def nouns(self, text: str) -> list[str]:
        """Singular nouns in the order of the text, with repeats, spelled as there (capitals kept)."""
        ...

    def similarity(self, a: str, b: str) -> float:
        """1 for words that mean the same, as far as the finder knows."""
        ...


#: plurals that no rule gives
IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "feet": "foot", "teeth": "tooth", "geese": "goose",
    "mice": "mouse", "oxen": "ox", "knives": "knife", "leaves": "leaf", "shelves": "shelf", "wolves": "wolf",
    "loaves": "loaf", "scarves": "scarf", "calves": "calf", "halves": "half", "lives": "life",
    "wives": "wife", "thieves": "thief", "hooves": "hoof", "elves": "elf", "cacti": "cactus",
    "buses": "bus", "gases": "gas", "potatoes": "potato", "tomatoes": "tomato", "heroes": "hero",
}  # fmt: skip
#: endings of regular plurals and what stands in their place
_ENDINGS = (
    ("ches", "ch"),
    ("shes", "sh"),
    ("sses", "ss"),
    ("xes", "x"),
    ("zzes", "zz"),
    ("ies", "y"),
    ("s", ""),
)
#: words that end like a plural and are none
_SINGULAR = re.compile(r"(?:ss|us|is)$")


def singulars(word: str) -> list[str]:
    """What a word may be the plural of, the likeliest first, the word itself last; capitals are kept."""
    found = []
    low = word.lower()
    if low in IRREGULAR:
        found.append(word[0] + IRREGULAR[low][1:])
    if len(word) > 3 and not _SINGULAR.search(low):
        found += [word[: -len(end)] + put for end, put in _ENDINGS if low.endswith(end)]
    return list(dict.fromkeys([*found, word]))


_WORD = re.compile(r"[A-Za-z]+(?:[-'][A-Za-z]+)*")


@dataclass(frozen=True)
class WordFinder:
    """Without a tagger: every word of a vocabulary counts, whatever its part of speech.

    "A cup" and "they cup" are one to it, and words are similar only if they are equal.
    """

    vocabulary: Collection[str]

    @property
    def name(self) -> str:
        return "words of the vocabulary (no tagger, no word vectors)"

    def nouns(self, text: str) -> list[str]:
        found = []
        for word in _WORD.findall(text):
            forms = singulars(word)
            found.append(next((f for f in (word, *forms) if f in self.vocabulary), forms[0]))
        return found

    def similarity(self, a: str, b: str) -> float:
        return float(a == b)


class SpacyFinder:
    """spaCy's tagger and word vectors. AMBER's official scorer takes similarities from en_core_web_lg."""

    def __init__(self, model: str = "en_core_web_lg") -> None:
        if importlib.util.find_spec("spacy") is None:
            mend = f"pip install spacy, then: python -m spacy download {model}"
            raise DataError("spaCy is not installed", key="nouns", mend=mend)
        import spacy

        try:
            self._nlp: Any = spacy.load(model)
        except OSError:
            mend = f"python -m spacy download {model}"
            raise DataError(f"spaCy's model {model!r} is not installed", key="nouns", mend=mend) from None
        self.name = f"spaCy {model} {self._nlp.meta['version']}"
        self._similarity = functools.lru_cache(maxsize=None)(self._compare)

    def nouns(self, text: str) -> list[str]:
        return [token.lemma_ for token in self._nlp(text) if token.tag_.startswith("NN")]

    def similarity(self, a: str, b: str) -> float:
        return self._similarity(a, b)

    def _compare(self, a: str, b: str) -> float:
        return float(self._nlp(a).similarity(self._nlp(b)))


def finder(vocabulary: Collection[str], choice: str = "auto") -> NounFinder:
    """The finder for a vocabulary: "words", a spaCy model's name, or "auto" (en_core_web_lg if there).

    Raises:
        DataError: a spaCy model that is not installed was asked for by name.
    """
    if choice == "words":
        return WordFinder(vocabulary)
    if choice != "auto":
        return SpacyFinder(choice)
    try:
        return SpacyFinder()
    except DataError:
        return WordFinder(vocabulary)
