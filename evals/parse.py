"""From an answer's text to what a scorer needs. Official rules and strict ones stand side by side.

An official rule reproduces published figures, with its quirks; a strict one says ``None`` where the
text does not clearly answer. A result always names the rule it used; the two are never mixed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Literal

YesNo = Literal["yes", "no"]

_CLAUSE = re.compile(r"[.,;:!?\n]+")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_LEAD_IN = re.compile(r"^\W*(?:(?:the|my)\s+)?answer(?:\s+is)?\b")
_YES = {"yes", "yeah", "yep"}
_NO = {"no", "nope"}


def pope_official(text: str) -> YesNo:
    """POPE's own rule (its ``evaluate.py``): anything that is not clearly "no" is "yes".

    The text up to the first full stop, without commas, is split at single blanks; if one of the
    words is exactly ``No``, ``not`` or ``no`` the answer is no. So ``NO``, ``No!``, ``isn't`` and an
    empty answer count as yes.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


# short answers repeat by the thousand
@functools.lru_cache(maxsize=10_000)
def yes_no_strict(text: str) -> YesNo | None:
    """Yes or no where the text says the word, else None (unparsed, which a report counts apart).

    A clause that starts with yes or no (after an optional "the answer is") is a verdict. There must
    be one, all verdicts of the text must agree, and none may hold both words ("yes, no", "yes and
    no", "yes there is no dog" are unparsed). "There is a cat" is no answer to "is there a dog?", so
    statements without the word stay unparsed too.
    """
    plain = text.lower().replace("’", "'")
    verdicts: set[YesNo] = set()
    for clause in _CLAUSE.split(plain):
        words = _WORD.findall(_LEAD_IN.sub("", clause))
        if not words or words[0] not in _YES | _NO:
            continue
        if _YES & set(words) and _NO & set(words):
            return None
        verdicts.add("yes" if words[0] in _YES else "no")
    return verdicts.pop() if len(verdicts) == 1 else None


#: the rules of POPE reports, by the name under which their figures stand
YES_NO_RULES: dict[str, Callable[[str], YesNo | None]] = {"official": pope_official, "strict": yes_no_strict}


def ratings_found(text: str) -> list[int]:
    """All of 0..6 for which ``rating: <digit>`` stands in the lower-cased text, ascending.

    "Rating: 10" holds ``rating: 1``; "Rating:5" holds none (MMHal-Bench's ``eval_gpt4.py``).
    """
    low = text.lower()
    return [score for score in range(7) if f"rating: {score}" in low]


def rating_official(text: str) -> int | None:
    """MMHal-Bench's rating 0..6, or None where the text holds none or several (officially scored 0)."""
    found = ratings_found(text)
    return found[0] if len(found) == 1 else None


_LAST_LINE = re.compile(r"\W*rating:\s*([0-6])(?:\s*/\s*6)?\W*", re.IGNORECASE)


def rating_strict(text: str) -> int | None:
    """The rating 0..6 that the last line gives, and nothing else stands there; else None.

    What a judge quotes further up ("the answer claims 'Rating: 6'") is no rating.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    match = _LAST_LINE.fullmatch(lines[-1]) if lines else None
    return int(match[1]) if match else None


#: the rules of MMHal reports, by the name under which their figures stand
RATING_RULES: dict[str, Callable[[str], int | None]] = {"official": rating_official, "strict": rating_strict}
