"""Votes on their way into the log and back: by side on the page, by response in the log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, and_, bindparam, select

from apps.annotate.accounts import User
from apps.annotate.errors import Refused, conflict, invalid
from apps.annotate.marks import Span, checked
from apps.annotate.results import SKIP_REASONS, Answers, Kept, Side
from apps.annotate.tables import Found, assignments, events
from data.schema import Preference

#: characters of what a client calls its request
_TOKEN = range(8, 65)
#: characters of a note
_NOTE = 1000
BY_TOKEN = select(events).where(events.c.user_id == bindparam("user"), events.c.token == bindparam("token"))


def by_index(answers: Answers, flipped: bool, record: str) -> dict[str, Any]:
    """Answers by side as the log keeps them, by response. Raises Refused (422) for odd ones."""
    if answers.hallucination not in ("A", "B", "tie") or answers.helpfulness not in ("A", "B", None):
        raise invalid("hallucination is A, B or tie; helpfulness A or B")
    if (answers.hallucination == "tie") != (answers.helpfulness is not None):
        raise invalid("helpfulness is answered after a tie, and then alone")
    index: dict[Side, int] = {"A": int(flipped), "B": 1 - int(flipped)}
    marks: list[tuple[int, int, int]] = []
    if answers.marks:
        if not answers.marks.keys() <= index.keys():
            raise invalid("marks are of A or B")
        texts = [response.text for response in Preference.model_validate_json(record).responses]
        for side, spans in answers.marks.items():
            marks += [(index[side], start, end) for start, end in checked(spans, texts[index[side]])]
    return {
        "hallucination": None if answers.hallucination == "tie" else index[answers.hallucination],
        "helpfulness": None if answers.helpfulness is None else index[answers.helpfulness],
        "marks": json.dumps(sorted(marks)) if marks else None,
    }


def by_side(said: Found) -> Answers | None:
    """What an event of the log said, by side; None for a skip."""
    if said.kind != "vote":
        return None
    sides: tuple[Side, Side] = ("B", "A") if said.flipped else ("A", "B")
    marks: dict[Side, list[Span]] = {}
    for place, start, end in json.loads(said.marks or "[]"):
        marks.setdefault(sides[place], []).append((start, end))
    helpful = None if said.helpfulness is None else sides[said.helpfulness]
    return Answers("tie" if said.hallucination is None else sides[said.hallucination], helpful, marks)


def reason_of(reason: str, note: str) -> str:
    """Why a pair is skipped, as the log keeps it. Raises Refused (422) for an unknown reason."""
    if reason not in SKIP_REASONS or len(note) > _NOTE or (reason == "other" and not note.strip()):
        known = ", ".join(SKIP_REASONS)
        raise invalid(f"the reason is one of {known}; other needs a note, of at most {_NOTE} characters")
    return f"{reason}: {note.strip()}" if note.strip() else reason


def decision(hallucination: int | None, helpfulness: int | None, note: str) -> dict[str, Any]:
    """An adjudication as the log keeps it. Raises Refused (422) for odd choices."""
    if hallucination not in (0, 1, None) or helpfulness not in (0, 1, None):
        raise invalid("a choice is 0, 1 or null")
    if hallucination is not None and helpfulness is not None:
        raise invalid("the second question is asked after a tie alone")
    if len(note) > _NOTE:
        raise invalid(f"a note has at most {_NOTE} characters")
    return {"hallucination": hallucination, "helpfulness": helpfulness, "reason": note.strip() or None}


def by_token(connection: Connection, user: User, token: str, kind: str) -> Found | None:
    """What a token stands for already. Raises Refused where that is something else, or the token is odd."""
    if len(token) not in _TOKEN:
        raise invalid(f"a token has {_TOKEN.start} to {_TOKEN.stop - 1} characters")
    found = connection.execute(BY_TOKEN, {"user": user.id, "token": token}).first()
    if found is not None and found.kind != kind:
        raise _reused()
    return found


def _reused() -> Refused:
    return conflict("token_reused", "this token stands for another request; make a new one")


def repeated(
    connection: Connection, user: User, n: int, token: str, kind: str, values: Mapping[str, Any]
) -> Kept | None:
    """The answer to a request that was done before; None for a new one.

    Raises:
        Refused: the token stands for another request (409).
    """
    found = by_token(connection, user, token, kind)
    if found is None:
        return None
    if found.pair_n != n or any(getattr(found, key) != value for key, value in values.items()):
        raise _reused()
    return Kept(found.id, True)


def last(connection: Connection, user: User) -> int | None:
    """The labeler's last vote or skip that stands."""
    stands = and_(
        assignments.c.user_id == events.c.user_id,
        assignments.c.pair_n == events.c.pair_n,
        assignments.c.event_id == events.c.id,
    )
    query = select(events.c.id).join(assignments, stands).where(events.c.user_id == user.id)
    return connection.scalar(query.order_by(events.c.id.desc()).limit(1))
