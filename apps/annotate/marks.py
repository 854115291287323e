"""Marks in a response's text: what a labeler says is not in the picture, and sentences to mark at once.

Places are counted in characters (Unicode code points), as Python does; JavaScript's strings count UTF-16
units, so a page converts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from apps.annotate.errors import invalid

#: marks kept of one vote
MOST = 200
#: an end of a sentence: its mark with closing quotes, then space; or a line break
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|\n")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|cf|approx|Mr|Mrs|Ms|Dr|St|No)|\b[A-Z])\.$")

Span = tuple[int, int]


def sentences(text: str) -> list[Span]:
    """(start, end) of each sentence, without the space around it; of a text in one piece, that piece.

    A rule of thumb for marking with one click, not a grammar: abbreviations that are not known end sentences.
    """
    ends = [m.end() for m in _END.finditer(text) if not _ABBREVIATION.search(text[: m.end()])]
    spans = []
    for start, end in zip([0, *ends], [*ends, len(text)]):
        piece = text[start:end]
        if piece.strip():
            first = start + len(piece) - len(piece.lstrip())
            spans.append((first, first + len(piece.strip())))
    return spans


def checked(spans: Sequence[Span], text: str) -> list[Span]:
    """Marks in order, those that touch or overlap as one. Raises Refused for one outside the text."""
    if len(spans) > MOST:
        raise invalid(f"{len(spans)} marks in one response; mark whole sentences instead (at most {MOST})")
    joined: list[Span] = []
    for start, end in sorted(spans):
        if not 0 <= start < end <= len(text):
            raise invalid(f"a mark from {start} to {end}, in a response of {len(text)} characters")
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined
