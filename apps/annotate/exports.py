"""Votes out of the store: as our own records, and through the formats of ``data`` as anybody else's.

``majority``: one record a pair with votes. Its better response is the one that more votes prefer (of equal
numbers neither: a tie). ``hallucination`` holds it where at least half of the votes for it were decided by
that question, else that is a tie and ``helpfulness`` holds it; so ``Preference.preferred`` is the majority's.
``adjudicated``: the same, with the admins' decisions in the place of the votes. ``labelers``: one record a
vote, with the labeler as ``annotator``.

``meta`` of the first two has ``votes`` (per question, counts for response 0, response 1 and tie), ``soft``
(shares of the votes that prefer each response), ``margin`` (their distance: 1 where all agree, 0 for a draw)
and ``marks`` (labeler, response, start, end), where there are any. Gold and qualification items are no
votes of a project and are left out.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, and_, select

from apps.annotate.assign import VOTED, WORK, choices, preferred
from apps.annotate.store import Store
from apps.annotate.tables import Found, assignments, events, pairs, users
from data.errors import DataError
from data.formats import FORMATS
from data.jsonl import write_records
from data.schema import HALLUCINATION, HELPFULNESS, Preference

LABELS = ("majority", "adjudicated", "labelers")
#: our own layout, and those that hold preferences
TARGETS = ("schema", *(f.name for f in FORMATS.values() if f.kind == "preference" and f.row is not None))
#: rows that are fetched at once
_BATCH = 2000


@dataclass
class Exported:
    """What was written, and pairs that were not: ties, which the target cannot hold."""

    written: int = 0
    ties: int = 0


def export(
    store: Store,
    path: Path,
    labels: str = "majority",
    to: str = "schema",
    *,
    without: Collection[str] = (),
) -> Exported:
    """Write the votes that stand to a file, whole or not at all, while others go on voting.

    ``without``: labelers whose votes are left out. Ties are records of our own layout; other layouts cannot
    hold them, and they are counted.

    Raises:
        DataError: unknown ``labels`` or target, or no vote to write. StoreError: the store's own file.
    """
    if labels not in LABELS:
        raise DataError(f"unknown labels {labels!r}", key="labels", mend=f"use one of {', '.join(LABELS)}")
    if to not in TARGETS:
        raise DataError(f"no target {to!r}", key="to", mend=f"use one of {', '.join(TARGETS)}")
    store.check_output(path)
    outcome = Exported()
    with store.read(snapshot=True) as connection:
        if strange := sorted(set(without) - set(connection.scalars(select(users.c.name)))):
            raise DataError(f"no labeler {strange[0]!r}", key="without", mend="see align annotate users list")
        found = _some(records(connection, labels, frozenset(without)), path)
        if to == "schema":
            outcome.written = write_records(path, found)
        else:
            decided = _decided(found, outcome)
            outcome.written = FORMATS[to].write(path, _some(decided, path))
    return outcome


def sizes(connection: Connection) -> dict[str, dict[str, int]]:
    """For each kind of labels, what ``export`` would find: records in all, and ties among them."""
    stands = and_(assignments.c.event_id == events.c.id, assignments.c.state == VOTED)
    query = (
        select(pairs.c.n, events.c.hallucination, events.c.helpfulness)
        .join(assignments, stands)
        .join(pairs, pairs.c.n == events.c.pair_n)
        .where(pairs.c.role == WORK)
    )
    votes: dict[int, Counter[int | None]] = defaultdict(Counter)
    for n, *said in connection.execute(query):
        votes[n][preferred(*said)] += 1
    drawn = {n for n, better in votes.items() if better[0] == better[1]}
    decided = {row.pair_n: preferred(row.hallucination, row.helpfulness) for row in _decisions(connection)}
    unsure = {n for n, better in decided.items() if better is None} | (drawn - decided.keys())
    single = sum(better.total() for better in votes.values())
    return {
        "majority": {"records": len(votes), "ties": len(drawn)},
        "adjudicated": {"records": len(votes.keys() | decided.keys()), "ties": len(unsure)},
        "labelers": {"records": single, "ties": sum(better[None] for better in votes.values())},
    }


def _some(found: Iterable[Preference], path: Path) -> Iterator[Preference]:
    none = True
    for record in found:
        none = False
        yield record
    if none:
        mend = "wait for votes, or export to schema, which holds ties"
        raise DataError("there is no decided vote to write", file=str(path), mend=mend)


def _decided(found: Iterable[Preference], outcome: Exported) -> Iterator[Preference]:
    for record in found:
        if record.preferred is None:
            outcome.ties += 1
        else:
            yield record


def records(connection: Connection, labels: str, without: frozenset[str]) -> Iterator[Preference]:
    """The records of an export, in the order of the pairs; see the module."""
    decisions = _adjudicated(connection) if labels == "adjudicated" else {}
    for record, votes, decided_by in _pairs(connection, without):
        if labels == "labelers":
            for vote in votes:
                yield _of_one(record, vote)
        elif decided_by in decisions:
            said = decisions[decided_by]
            yield _joined(record, votes, choices(said.hallucination, said.helpfulness), "adjudicated")
        elif votes:
            yield _joined(record, votes, _majority(votes), "majority")


def _pairs(
    connection: Connection, without: frozenset[str]
) -> Iterator[tuple[Preference, list[Found], int | None]]:
    """Each work pair with votes or a decision: its record, its votes, and the event that decided it."""
    stands = and_(assignments.c.pair_n == pairs.c.n, assignments.c.state == VOTED)
    query = (
        select(
            pairs.c.n, pairs.c.record, pairs.c.adjudicated, users.c.name, events.c.hallucination,
            events.c.helpfulness, events.c.marks, events.c.flipped, events.c.seconds_browser,
            events.c.seconds_server,
        )
        .select_from(pairs)
        .outerjoin(assignments, stands)
        .outerjoin(events, events.c.id == assignments.c.event_id)
        .outerjoin(users, users.c.id == assignments.c.user_id)
        .where(pairs.c.role == WORK, (pairs.c.votes > 0) | pairs.c.adjudicated.is_not(None))
        .order_by(pairs.c.n, assignments.c.event_id)
    )  # fmt: skip
    found = connection.execution_options(yield_per=_BATCH).execute(query)
    for _, group in groupby(found, key=attrgetter("n")):
        rows = list(group)
        votes = [row for row in rows if row.name is not None and row.name not in without]
        yield Preference.model_validate_json(rows[0].record), votes, rows[0].adjudicated


def _adjudicated(connection: Connection) -> dict[int | None, Found]:
    """Event -> decision, of those that stand."""
    return {row.id: row for row in _decisions(connection)}


def _decisions(connection: Connection) -> Iterable[Found]:
    return connection.execute(select(events).join(pairs, pairs.c.adjudicated == events.c.id))


def _of_one(record: Preference, vote: Found) -> Preference:
    shown_first = 1 if vote.flipped else 0
    seconds = vote.seconds_server if vote.seconds_browser is None else vote.seconds_browser
    meta: dict[str, Any] = {"shown_first": shown_first, "seconds": seconds}
    if vote.marks:
        meta["marks"] = json.loads(vote.marks)
    return _labelled(record, choices(vote.hallucination, vote.helpfulness), vote.name, meta)


def _joined(
    record: Preference, votes: list[Found], made: dict[str, int | None], annotator: str
) -> Preference:
    meta: dict[str, Any] = {}
    if votes:
        counts = {
            HALLUCINATION: _counts(vote.hallucination for vote in votes),
            # asked after a tie alone
            HELPFULNESS: _counts(vote.helpfulness for vote in votes if vote.hallucination is None),
        }
        better = _counts(preferred(vote.hallucination, vote.helpfulness) for vote in votes)
        soft = [better[0] / len(votes), better[1] / len(votes)]
        meta = {"votes": counts, "soft": soft, "margin": abs(soft[0] - soft[1])}
        marks = [[vote.name, *mark] for vote in votes if vote.marks for mark in json.loads(vote.marks)]
        meta |= {"marks": marks} if marks else {}
    return _labelled(record, made, annotator, meta)


def _counts(found: Iterable[int | None]) -> list[int]:
    counted = Counter(found)
    return [counted[0], counted[1], counted[None]]


def _majority(votes: list[Found]) -> dict[str, int | None]:
    better = Counter(preferred(vote.hallucination, vote.helpfulness) for vote in votes)
    if better[0] == better[1]:
        return choices(None, None)
    winner = 0 if better[0] > better[1] else 1
    by_first = sum(vote.hallucination == winner for vote in votes)
    return choices(winner, None) if 2 * by_first >= better[winner] else choices(None, winner)


def _labelled(
    record: Preference, made: dict[str, int | None], annotator: str, meta: dict[str, Any]
) -> Preference:
    values = {"choices": made, "annotator": annotator, "meta": record.meta | meta}
    return record.model_copy(update=values)
