"""Pairs on which the labelers disagree, or that nobody could label: for an admin to decide."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, and_, func, insert, or_, select, update

from apps.annotate.accounts import User
from apps.annotate.assign import SKIPPED, VOTED, WORK
from apps.annotate.errors import not_found
from apps.annotate.results import Disputed, Kept, Turn, Verdict
from apps.annotate.store import new_id
from apps.annotate.tables import assignments, events, pairs, users
from apps.annotate.votes import repeated
from data.schema import Preference


def disputed(connection: Connection, after: int, limit: int) -> tuple[int, list[Disputed]]:
    """How many pairs wait, and ``limit`` of them that follow number ``after``, in order.

    A pair waits once its votes are all there and prefer different responses, or, with votes still wanted,
    when as many labelers have skipped it as votes were wanted. What was adjudicated waits no longer.
    """
    better = func.coalesce(events.c.hallucination, events.c.helpfulness)
    voted = assignments.c.state == VOTED
    chosen = func.max(better).filter(voted) - func.min(better).filter(voted)
    skips = func.count().filter(assignments.c.state == SKIPPED)
    waiting = (
        select(pairs.c.n)
        .join(assignments, assignments.c.pair_n == pairs.c.n)
        .join(events, events.c.id == assignments.c.event_id)
        .where(pairs.c.role == WORK, pairs.c.adjudicated.is_(None))
        .group_by(pairs.c.n, pairs.c.open, pairs.c.wanted)
        .having(or_(and_(pairs.c.open == 0, chosen > 0), and_(pairs.c.open == 1, skips >= pairs.c.wanted)))
    ).subquery()
    count = int(connection.scalar(select(func.count()).select_from(waiting)) or 0)
    page = select(waiting.c.n).where(waiting.c.n > after).order_by(waiting.c.n).limit(limit)
    return count, [_show(connection, n) for n in connection.scalars(page).all()]


def adjudicate(
    connection: Connection, admin: User, pair: str, values: dict[str, Any], token: str, now: float
) -> Kept:
    """Write a decision to the log and make it stand; the pair is given to nobody any more.

    Raises:
        Refused: no such pair (404), or the token stands for another request (409).
    """
    n = connection.scalar(select(pairs.c.n).where(pairs.c.key == pair, pairs.c.role == WORK))
    if n is None:
        raise not_found("no such pair")
    if done := repeated(connection, admin, n, token, "adjudicate", values):
        return done
    row = {"at": now, "user_id": admin.id, "pair_n": n, "kind": "adjudicate", "token": token}
    made = new_id(connection.execute(insert(events).values(**row, **values)))
    connection.execute(update(pairs).where(pairs.c.n == n).values(adjudicated=made, open=0))
    return Kept(made, False)


def _show(connection: Connection, n: int) -> Disputed:
    pair = connection.execute(select(pairs).where(pairs.c.n == n)).one()
    record = Preference.model_validate_json(pair.record)
    query = (
        select(users.c.name, events)
        .join(events, events.c.user_id == users.c.id)
        .join(assignments, assignments.c.event_id == events.c.id)
        .where(assignments.c.pair_n == n)
        .order_by(events.c.id)
    )
    said = connection.execute(query).all()
    return Disputed(
        n=n,
        pair=pair.key,
        id=pair.id,
        has_image=record.image is not None,
        messages=[Turn(m.role, m.content) for m in record.messages if m.role != "system"],
        responses=[response.text for response in record.responses],
        votes=[_verdict(row) for row in said if row.kind == "vote"],
        skips=[(row.name, row.reason) for row in said if row.kind == "skip"],
    )


def _verdict(row: Any) -> Verdict:
    marks = [(int(r), int(start), int(end)) for r, start, end in json.loads(row.marks or "[]")]
    seconds = row.seconds_server if row.seconds_browser is None else row.seconds_browser
    return Verdict(row.name, row.hallucination, row.helpfulness, marks, seconds)
