"""What goes in and out of ``apps.annotate.service``: plain values, ready to become JSON.

What labelers get (``Task``) names no model, no other labeler, no file and no id of the data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from apps.annotate.marks import Span

Side = Literal["A", "B"]
#: reasons to skip a pair, in words for people; "other" asks for a note
SKIP_REASONS = {
    "image": "the picture does not show, or cannot be made out",
    "unclear": "the question or a response cannot be understood",
    "both_unusable": "neither response is one",
    "language": "it is not in my language",
    "sensitive": "I do not want to look at this",
    "other": "something else",
}


@dataclass(frozen=True)
class Turn:
    #: "user" or "assistant"; system turns are not shown
    role: str
    content: str


@dataclass(frozen=True)
class Shown:
    """A response as a labeler sees it. ``text`` is data: show it as text, never as HTML or Markdown."""

    side: Side
    text: str
    #: sentences as (start, end), to be marked by one click
    sentences: list[Span]


@dataclass(frozen=True)
class Answers:
    """What a labeler said: the two questions, by side, and marked words."""

    #: which has fewer hallucinations
    hallucination: Literal["A", "B", "tie"]
    #: after a tie alone: which is more helpful, or less incorrect
    helpfulness: Side | None = None
    #: side -> marks (start, end) in characters
    marks: dict[Side, list[Span]] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A pair to compare, held for the labeler for ``seconds_left``."""

    #: names the pair in every request about it
    pair: str
    has_image: bool
    messages: list[Turn]
    #: A and B, in the order in which this labeler sees them
    responses: list[Shown]
    seconds_left: float
    #: "qualification" or "work"; a gold item looks like any other
    stage: Literal["qualification", "work"]
    #: of the test: this item's number (from 1), and how many there are
    number: int | None = None
    of: int | None = None
    #: what the labeler said before ``undo`` brought the pair back
    before: Answers | None = None
    kind: Literal["task"] = "task"


@dataclass(frozen=True)
class NoTask:
    """Nothing to compare, and why.

    "done": every pair has its votes, or this labeler's. "wait": others are at what is left; ask again after
    ``wait`` seconds. "limit": this labeler has given as many votes as wanted. "failed": the test was not
    passed.
    """

    reason: Literal["done", "wait", "limit", "failed"]
    wait: float | None = None
    kind: Literal["none"] = "none"


@dataclass(frozen=True)
class Kept:
    """A vote, skip or undo that is on disk."""

    #: its number in the log
    event: int
    #: the same request came before; nothing was added
    repeated: bool
    #: after the last item of the test: "passed" or "failed"
    qualification: str | None = None


@dataclass(frozen=True)
class Progress:
    """How far a labeler is, and the project."""

    votes: int
    skips: int
    #: votes this labeler may give in all; None without a limit
    limit: int | None
    #: None (no test, or before it), "passed" or "failed"
    qualification: str | None
    test_answered: int
    test_items: int
    #: right answers that pass the test
    test_pass: int
    #: work pairs with all their votes, or decided (in steps, where there are gold items); and all work pairs
    pairs_done: int
    pairs: int


@dataclass(frozen=True)
class Picture:
    """An image as it is sent."""

    data: bytes
    media_type: str
    etag: str


@dataclass(frozen=True)
class LabelerRow:
    """What one labeler did, for admins. Shares are None where nothing is behind them."""

    name: str
    role: str
    disabled: bool
    qualification: str | None
    qualification_right: int | None
    limit: int | None
    #: votes that stand, on work and on gold pairs
    votes: int
    gold: int
    skips: int
    undone: int
    #: medians over the votes that stand
    seconds_browser: float | None
    seconds_server: float | None
    #: last thing done, seconds since the epoch
    last: float | None
    #: votes on gold pairs that are right: value, low, high, n
    gold_right: dict[str, float | int | None]
    #: agreement with the others on the same pairs: value, low, high, n
    agreement: dict[str, float | int | None]
    #: of the decided votes, for the response shown as A, and for the longer one
    chose_a: dict[str, float | int | None]
    chose_longer: dict[str, float | int | None]
    #: of all votes: ties in the first question
    ties: dict[str, float | int | None]


@dataclass(frozen=True)
class Verdict:
    """One labeler's vote on a pair, for admins: by response index, None for a tie."""

    labeler: str
    hallucination: int | None
    helpfulness: int | None
    #: marks (response, start, end)
    marks: list[tuple[int, int, int]]
    seconds: float | None


@dataclass(frozen=True)
class Disputed:
    """A pair that waits for an adjudication. Responses are in the data's order, without models."""

    n: int
    pair: str
    id: str
    has_image: bool
    messages: list[Turn]
    responses: list[str]
    votes: list[Verdict]
    #: (labeler, reason)
    skips: list[tuple[str, str]]
