"""Who compares what: leases, votes wanted, gold items, the test, limits. All within a transaction.

What never happens: more votes on a work pair than wanted, two votes of one labeler on a pair, two leases of
one labeler at a time. A lease counts as a vote to come until it is over, so a pair is given out no more often
than wanted; a tab that was closed gives its pair back when the lease ends. A vote that comes later is still
taken while nobody else has been given the place.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BindParameter, Connection, and_, bindparam, case, func, insert, select, update

from apps.annotate.errors import conflict, invalid, not_found
from apps.annotate.results import NoTask
from apps.annotate.store import new_id
from apps.annotate.tables import Found, assignments, events, pairs, users
from data.schema import HALLUCINATION, HELPFULNESS, Preference

WORK, GOLD, QUALIFICATION = "work", "gold", "qualification"
LEASED, VOTED, SKIPPED = "leased", "voted", "skipped"


@dataclass(frozen=True)
class Rules:
    """How a project asks. Kept in the store; votes wanted a pair are each pair's own."""

    #: seconds that a pair is held for a labeler
    lease: float = 15 * 60.0
    #: items of the test, drawn for each labeler from the qualification pairs; 0: no test
    qualification: int = 5
    #: right answers that pass it
    pass_mark: int = 4
    #: one gold item among so many pairs, at random; 0: none
    gold_every: int = 20
    #: votes of one labeler, unless set for the labeler; 0: any number
    limit: int = 0

    def __post_init__(self) -> None:
        if not 10 <= self.lease <= 7 * 86400:
            raise invalid(f"a lease of {self.lease:g} seconds; give 10 seconds to 7 days")
        if not 0 <= self.pass_mark <= self.qualification <= 1000:
            raise invalid(
                f"a test of {self.qualification} with {self.pass_mark} to pass; give 0 <= pass <= items"
            )
        if self.gold_every < 0 or self.limit < 0:
            raise invalid("gold_every and limit are whole numbers, 0 or above")


@dataclass(frozen=True)
class Lease:
    """A pair that is held for a labeler."""

    n: int
    key: str
    role: str
    record: str
    flipped: bool
    served: float
    expires: float


# --- statements, built once: building one costs as much as SQLite takes to carry it out ---

_user: BindParameter[int] = bindparam("user")
_pair: BindParameter[int] = bindparam("pair")
_now: BindParameter[float] = bindparam("now")
_mine, _theirs = assignments.alias("mine"), assignments.alias("theirs")
_OWN = and_(assignments.c.user_id == _user, assignments.c.pair_n == _pair)
_HELD = and_(assignments.c.user_id == _user, assignments.c.state == LEASED, assignments.c.expires > _now)
#: the labeler has voted on the pair, or skipped it
_SETTLED = (
    select(_mine.c.pair_n)
    .where(_mine.c.user_id == _user, _mine.c.pair_n == pairs.c.n, _mine.c.state != LEASED)
    .exists()
)
#: another labeler holds the pair
_TAKEN = and_(
    _theirs.c.pair_n == pairs.c.n,
    _theirs.c.state == LEASED,
    _theirs.c.expires > _now,
    _theirs.c.user_id != _user,
)
_ROOM = (
    pairs.c.votes + select(func.count()).select_from(_theirs).where(_TAKEN).scalar_subquery() < pairs.c.wanted
)
_LEASE = (
    pairs.c.n, pairs.c.key, pairs.c.role, pairs.c.record,
    assignments.c.flipped, assignments.c.served, assignments.c.expires,
)  # fmt: skip

LABELER = select(users.c.votes, users.c.skips, users.c.vote_limit, users.c.qualification).where(
    users.c.id == _user
)
HELD = (
    select(*_LEASE)
    .join(assignments, assignments.c.pair_n == pairs.c.n)
    .where(_HELD)
    .order_by(assignments.c.expires.desc())
    .limit(1)
)
NEXT_WORK = (
    select(pairs.c.n).where(pairs.c.open == 1, ~_SETTLED, _ROOM).order_by(pairs.c.rank, pairs.c.n).limit(1)
)
UNSEEN_GOLD = select(pairs.c.n).where(pairs.c.role == GOLD, ~_SETTLED).order_by(pairs.c.n)
#: when the first pair becomes free that others hold and the labeler may still have
FREE_AT = (
    select(func.min(_theirs.c.expires))
    .select_from(pairs.join(_theirs, _TAKEN))
    .where(pairs.c.open == 1, ~_SETTLED)
)
HAS_ROOM = select(pairs.c.n).where(pairs.c.n == _pair, (pairs.c.role != WORK) | _ROOM)
OFFERED = (
    select(pairs.c.key, pairs.c.role, pairs.c.record, assignments.c.flipped)
    .select_from(pairs.outerjoin(assignments, _OWN))
    .where(pairs.c.n == _pair)
)
GIVEN = (
    select(*_LEASE, assignments.c.state, pairs.c.votes, pairs.c.wanted, pairs.c.adjudicated)
    .join(assignments, assignments.c.pair_n == pairs.c.n)
    .where(pairs.c.key == bindparam("key"), assignments.c.user_id == _user)
)
HOLD = (
    update(assignments)
    .where(_OWN)
    .values(state=LEASED, event_id=None, served=_now, expires=bindparam("until"))
)
STAND = update(assignments).where(_OWN).values(state=bindparam("to"), event_id=bindparam("event"))
RELEASE = update(assignments).where(_HELD).values(expires=_now)
_votes = pairs.c.votes + bindparam("by")
_wants_more = and_(_votes < pairs.c.wanted, pairs.c.adjudicated.is_(None))
COUNT_PAIR = (
    update(pairs).where(pairs.c.n == _pair).values(votes=_votes, open=case((_wants_more, 1), else_=0))
)
COUNT_USER = {
    VOTED: update(users).where(users.c.id == _user).values(votes=users.c.votes + bindparam("by")),
    SKIPPED: update(users).where(users.c.id == _user).values(skips=users.c.skips + bindparam("by")),
}


# --- what comes next ---


def next_pair(
    connection: Connection, user: int, rules: Rules, now: float, secret: str, rng: random.Random
) -> Lease | NoTask:
    """The pair that a labeler holds already, or the next one, leased from now on; else why there is none."""
    held = held_by(connection, user, now)
    if held is not None:
        return held
    me = labeler(connection, user)
    if me.qualification != "passed" and (test := test_items(connection, user, rules, secret)):
        if me.qualification == "failed":
            return NoTask("failed")
        answered = settled_of(connection, user, test)
        for item in test:
            if item not in answered:
                return _lease(connection, user, item, rules, now, rng)
        # the rules ask for fewer items now, and those are answered
        if grade(connection, user, rules, secret) == "failed":
            return NoTask("failed")
    if me.votes >= (limit_of(me, rules) or me.votes + 1):
        return NoTask("limit")
    # the same draw until something is done, so that asking again changes nothing
    draw = random.Random(f"{secret}/{user}/{me.votes}/{me.skips}")
    if rules.gold_every and draw.random() * rules.gold_every < 1:
        unseen = connection.scalars(UNSEEN_GOLD, {"user": user}).all()
        if unseen:
            return _lease(connection, user, draw.choice(unseen), rules, now, rng)
    given = {"user": user, "now": now}
    n = connection.scalar(NEXT_WORK, given)
    if n is not None:
        return _lease(connection, user, n, rules, now, rng)
    until = connection.scalar(FREE_AT, given)
    return NoTask("done") if until is None else NoTask("wait", max(1.0, until - now))


def labeler(connection: Connection, user: int) -> Found:
    """A labeler's counters: votes, skips, vote_limit, qualification."""
    return connection.execute(LABELER, {"user": user}).one()


def limit_of(me: Found, rules: Rules) -> int | None:
    """Votes that a labeler may give; None for any number."""
    return me.vote_limit if me.vote_limit is not None else rules.limit or None


def held_by(connection: Connection, user: int, now: float) -> Lease | None:
    """The pair that a labeler holds."""
    row = connection.execute(HELD, {"user": user, "now": now}).first()
    if row is None:
        return None
    return Lease(row.n, row.key, row.role, row.record, bool(row.flipped), row.served, row.expires)


def _lease(connection: Connection, user: int, n: int, rules: Rules, now: float, rng: random.Random) -> Lease:
    """Hold a pair for a labeler; which response is A is drawn once and stays."""
    found = connection.execute(OFFERED, {"pair": n, "user": user}).one()
    until, flipped = now + rules.lease, found.flipped
    if flipped is None:
        flipped = rng.getrandbits(1)
        row = {"user_id": user, "pair_n": n, "flipped": flipped, "state": LEASED}
        connection.execute(insert(assignments), row | {"served": now, "expires": until})
    else:
        hold(connection, user, n, now, until)
    return Lease(n, found.key, found.role, found.record, bool(flipped), now, until)


def hold(connection: Connection, user: int, n: int, served: float, until: float) -> None:
    """Make a pair the labeler's to settle."""
    connection.execute(HOLD, {"user": user, "pair": n, "now": served, "until": until})


# --- what a labeler does with a pair ---


def assignment(connection: Connection, user: int, key: str) -> Found:
    """What stands between a labeler and a pair. Raises Refused (404) where it was never given to them."""
    found = connection.execute(GIVEN, {"key": key, "user": user}).first()
    if found is None:
        raise not_found("this pair was not given to you")
    return found


def check_place(connection: Connection, user: int, given: Found, now: float) -> None:
    """Raise Refused (409) unless the labeler may settle the pair now."""
    if given.state != LEASED:
        raise conflict(f"already_{given.state}", f"you have {given.state} this pair already; undo that first")
    if given.expires <= now and not has_room(connection, user, given.n, now):
        message = "the time for this pair ran out, and it was given to somebody else; nothing was stored"
        raise conflict("lease_lost", message)


def has_room(connection: Connection, user: int, n: int, now: float) -> bool:
    """Whether a pair takes one more vote; gold and qualification pairs always do."""
    return connection.scalar(HAS_ROOM, {"pair": n, "user": user, "now": now}) is not None


def settle(connection: Connection, user: int, given: Found, state: str, values: Mapping[str, Any]) -> int:
    """Write a vote or a skip to the log and make it stand; returns its number."""
    kind = "vote" if state == VOTED else "skip"
    row = {"user_id": user, "pair_n": given.n, "kind": kind, "flipped": given.flipped, **values}
    number = new_id(connection.execute(insert(events), row))
    connection.execute(STAND, {"user": user, "pair": given.n, "to": state, "event": number})
    _count(connection, user, given, state, +1)
    return number


def take_back(
    connection: Connection, user: int, given: Found, of_event: int, rules: Rules, now: float, token: str
) -> int:
    """Write an undo to the log; the pair is held for the labeler again, and nothing else is."""
    row = {"user_id": user, "pair_n": given.n, "kind": "undo", "of_event": of_event}
    number = new_id(connection.execute(insert(events), row | {"at": now, "token": token}))
    release(connection, user, now)
    hold(connection, user, given.n, now, now + rules.lease)
    _count(connection, user, given, given.state, -1)
    return number


def release(connection: Connection, user: int, now: float) -> None:
    """Give back what the labeler holds."""
    connection.execute(RELEASE, {"user": user, "now": now})


def _count(connection: Connection, user: int, given: Found, state: str, by: int) -> None:
    if state == VOTED and given.role == WORK:
        connection.execute(COUNT_PAIR, {"pair": given.n, "by": by})
    if given.role != QUALIFICATION:
        connection.execute(COUNT_USER[state], {"user": user, "by": by})


# --- the test and gold ---


def test_items(connection: Connection, user: int, rules: Rules, secret: str) -> list[int]:
    """The pairs of a labeler's test, in the labeler's own order."""
    if not rules.qualification:
        return []
    pool = connection.scalars(select(pairs.c.n).where(pairs.c.role == QUALIFICATION)).all()

    def order(n: int) -> bytes:
        return hashlib.sha256(f"{secret}/{user}/{n}".encode()).digest()

    return sorted(pool, key=order)[: rules.qualification]


def settled_of(connection: Connection, user: int, of: list[int]) -> set[int]:
    """Those of some pairs that a labeler has voted on."""
    mine = and_(assignments.c.user_id == user, assignments.c.state == VOTED, assignments.c.pair_n.in_(of))
    return set(connection.scalars(select(assignments.c.pair_n).where(mine)))


def grade(connection: Connection, user: int, rules: Rules, secret: str) -> str | None:
    """ "passed" or "failed" once all of the test is answered (and so written down); None before."""
    test = test_items(connection, user, rules, secret)
    if len(settled_of(connection, user, test)) < len(test):
        return None
    query = (
        select(pairs.c.record, events.c.hallucination, events.c.helpfulness)
        .join(assignments, assignments.c.pair_n == pairs.c.n)
        .join(events, events.c.id == assignments.c.event_id)
        .where(assignments.c.user_id == user, pairs.c.n.in_(test))
    )
    right = sum(is_right(row.record, row.hallucination, row.helpfulness) for row in connection.execute(query))
    outcome = "passed" if right >= right_to_pass(rules, len(test)) else "failed"
    values = {"qualification": outcome, "qualification_right": right}
    connection.execute(update(users).where(users.c.id == user).values(**values))
    return outcome


def right_to_pass(rules: Rules, items: int) -> int:
    """Right answers that pass a test of so many items.

    A pool smaller than the test is passed by as many mistakes as the test allows.
    """
    return max(0, items - (rules.qualification - rules.pass_mark))


def retake(connection: Connection, user: int) -> None:
    """Let a labeler take the test again; the log keeps the first answers."""
    test = select(pairs.c.n).where(pairs.c.role == QUALIFICATION)
    mine = and_(assignments.c.user_id == user, assignments.c.pair_n.in_(test))
    again = {"state": LEASED, "event_id": None, "expires": 0.0}
    connection.execute(update(assignments).where(mine).values(**again))
    cleared = {"qualification": None, "qualification_right": None}
    connection.execute(update(users).where(users.c.id == user).values(**cleared))


def is_right(record: str, hallucination: int | None, helpfulness: int | None) -> bool:
    """Whether a vote says what a gold pair's own choices say: the same better response, or a tie likewise."""
    gold = Preference.model_validate_json(record)
    if gold.preferred is None:
        return hallucination is None
    return gold.preferred == preferred(hallucination, helpfulness)


def preferred(hallucination: int | None, helpfulness: int | None) -> int | None:
    """The better response of a vote, as ``Preference.preferred`` has it."""
    return helpfulness if hallucination is None else hallucination


def choices(hallucination: int | None, helpfulness: int | None) -> dict[str, int | None]:
    """A vote as ``Preference.choices``."""
    return {HALLUCINATION: hallucination, HELPFULNESS: helpfulness}
