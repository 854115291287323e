"""What an annotation project's votes say of the labelers and of the questions, for the admin page and the
command line. Everything here reads the votes that stand; undone ones are counted, and nothing else.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from sqlalchemy import Connection, func, select

from apps.annotate.assign import GOLD, QUALIFICATION, SKIPPED, VOTED, WORK, is_right, preferred
from apps.annotate.results import LabelerRow
from apps.annotate.tables import Found, assignments, events, pairs, users
from data.schema import Preference
from evals.agreement import (
    MISSING,
    cohen_kappa,
    counts_of,
    fleiss_kappa,
    krippendorff_alpha,
    matrix,
    mean_cohen_kappa,
    raw_agreement,
)
from evals.metrics import Interval, bootstraps, mean_columns, mean_interval, ratio, wilson_interval

#: pairs of labelers whose own kappa is listed: those with the most pairs in common
LISTED = 50
HOUR, DAY = 3600.0, 86400.0
#: hours whose votes are told one by one
HOURS = 48


@dataclass(frozen=True)
class Vote:
    """One vote that stands."""

    n: int
    role: str
    user: int
    at: float
    hallucination: int | None
    helpfulness: int | None
    flipped: bool
    seconds_browser: float | None
    seconds_server: float | None

    @property
    def preferred(self) -> int | None:
        return preferred(self.hallucination, self.helpfulness)


def standing(connection: Connection) -> list[Vote]:
    """All votes that stand, in the order in which they were given."""
    query = (
        select(
            pairs.c.n, pairs.c.role, events.c.user_id, events.c.at, events.c.hallucination,
            events.c.helpfulness, events.c.flipped, events.c.seconds_browser, events.c.seconds_server,
        )
        .join(assignments, assignments.c.event_id == events.c.id)
        .join(pairs, pairs.c.n == events.c.pair_n)
        .where(assignments.c.state == VOTED)
        .order_by(events.c.id)
    )  # fmt: skip
    return [Vote(*row[:6], bool(row.flipped), *row[7:]) for row in connection.execute(query)]


def overview(connection: Connection, now: float) -> dict[str, Any]:
    """Totals, votes a day and an hour, time a vote, and when it will be done.

    Votes are those on work pairs throughout; ``labelers_last_day`` gave any, be it of the test or on gold.
    ``seconds``: quartiles of the browser's and the server's time; ``by_day``: votes that stand of each day
    (UTC) that has any, the oldest first; ``by_hour``: of each of the last hours, this one at the end.
    """
    found = standing(connection)
    counted = select(pairs.c.role, func.count(), func.sum(pairs.c.open), func.sum(pairs.c.wanted))
    by_role = {row[0]: row[1:] for row in connection.execute(counted.group_by(pairs.c.role))}
    work = by_role.get(WORK, (0, 0, 0))
    of_kind = select(events.c.kind, func.count()).group_by(events.c.kind)
    kinds: Counter[str] = Counter(dict(connection.execute(of_kind).tuples().all()))
    given = [vote for vote in found if vote.role == WORK]
    days = Counter(int(vote.at // DAY) for vote in given)
    hours, this = Counter(int(vote.at // HOUR) for vote in given), int(now // HOUR)
    return {
        "pairs": work[0],
        "pairs_done": work[0] - int(work[1] or 0),
        "votes_wanted": int(work[2] or 0),
        "votes": len(given),
        "gold_items": by_role.get(GOLD, (0,))[0],
        "qualification_items": by_role.get(QUALIFICATION, (0,))[0],
        "gold_votes": sum(vote.role == GOLD for vote in found),
        "skips": kinds["skip"],
        "undone": kinds["undo"],
        "adjudicated": connection.scalar(select(func.count(pairs.c.adjudicated))),
        "votes_last_hour": sum(vote.at > now - HOUR for vote in given),
        "votes_last_day": sum(vote.at > now - DAY for vote in given),
        "labelers_last_day": len({vote.user for vote in found if vote.at > now - DAY}),
        "seconds": {
            "browser": _quartiles([v.seconds_browser for v in given if v.seconds_browser is not None]),
            "server": _quartiles([v.seconds_server for v in given if v.seconds_server is not None]),
        },
        "by_day": [{"day": day * DAY, "votes": days[day]} for day in sorted(days)],
        "by_hour": [{"hour": h * HOUR, "votes": hours[h]} for h in range(this - HOURS + 1, this + 1)],
        "skips_by_reason": _reasons(connection),
        "qualification": _tested(connection),
        "forecast": _forecast(connection, given, now),
        "labels_per_labeler": _spread(Counter(vote.user for vote in given)),
    }


def _reasons(connection: Connection) -> dict[str, int]:
    """Reason (without the note behind its colon) -> skips that stand, the most frequent first."""
    query = (
        select(events.c.reason)
        .join(assignments, assignments.c.event_id == events.c.id)
        .where(assignments.c.state == SKIPPED)
    )
    counted = Counter(str(reason).partition(":")[0] for reason in connection.scalars(query))
    return dict(counted.most_common())


def _tested(connection: Connection) -> dict[str, int]:
    """How many labelers passed the test, and how many did not."""
    query = select(users.c.qualification, func.count()).group_by(users.c.qualification)
    found: dict[str | None, int] = dict(connection.execute(query).tuples().all())
    return {outcome: found.get(outcome, 0) for outcome in ("passed", "failed")}


def _forecast(connection: Connection, given: Sequence[Vote], now: float) -> dict[str, float | int | None]:
    """Votes still wanted, work votes an hour over the last day, and seconds until none is wanted.

    A project younger than a day is measured over its own time, though over an hour at least. Without a vote
    in that time there is no end in sight: None.
    """
    query = select(func.sum(pairs.c.wanted - pairs.c.votes)).where(pairs.c.role == WORK, pairs.c.open == 1)
    left = int(connection.scalar(query) or 0)
    span = min(DAY, max(HOUR, now - given[0].at)) if given else DAY
    rate = sum(vote.at >= now - span for vote in given) / (span / HOUR)
    seconds = 0.0 if not left else left / rate * HOUR if rate else None
    return {"votes_left": left, "votes_an_hour": rate, "seconds": seconds}


def _quartiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"low": float(low), "median": float(middle), "high": float(high)}


def _spread(counts: Counter[int]) -> dict[str, float] | None:
    """How labels spread over those who gave any: number, least, quartiles, mean and most."""
    if not counts:
        return None
    values = list(counts.values())
    quarter, three_quarters = np.percentile(values, [25, 75])
    return {
        "labelers": len(values),
        "least": min(values),
        "quarter": float(quarter),
        "median": float(statistics.median(values)),
        "three_quarters": float(three_quarters),
        "mean": sum(values) / len(values),
        "most": max(values),
    }


# --- agreement ---


def agreement(connection: Connection, *, n_boot: int = 1000) -> dict[str, Any]:
    """Agreement on the work pairs with two votes or more, question by question.

    "preferred": the better response in the end, 0 or 1 (the share that the thesis gives as 69 %);
    "hallucination": 0, tie or 1, also as an order with the tie in the middle. Each figure with its interval
    over pairs, and why it is undefined, if it is. "labelers": Cohen's kappa of those with most in common.
    """
    votes = [vote for vote in standing(connection) if vote.role == WORK]
    shared = {n for n, count in Counter(vote.n for vote in votes).items() if count > 1}
    votes = [vote for vote in votes if vote.n in shared]
    names = dict(connection.execute(select(users.c.id, users.c.name)).all())
    # the tie stands between the two responses
    places = {0: 0, None: 1, 1: 2}
    first, _, raters = matrix((vote.n, vote.user, int(vote.preferred or 0)) for vote in votes)
    second, _, _ = matrix((vote.n, vote.user, places[vote.hallucination]) for vote in votes)
    ordered = krippendorff_alpha(counts_of(second, 3), "ordinal", n_boot=n_boot)
    return {
        "pairs": len(shared),
        "votes": len(votes),
        "preferred": _figures(first, 2, n_boot),
        "hallucination": _figures(second, 3, n_boot) | {"krippendorff_alpha_ordinal": ordered.as_dict()},
        "labelers": _between(first, [str(names[rater]) for rater in raters], n_boot),
    }


def _figures(table: Any, categories: int, n_boot: int) -> dict[str, Any]:
    counts = counts_of(table, categories)
    return {
        "raw": raw_agreement(counts, n_boot=n_boot).as_dict(),
        "cohen_kappa_mean": mean_cohen_kappa(table, categories, n_boot=n_boot).as_dict(),
        "fleiss_kappa": fleiss_kappa(counts, n_boot=n_boot).as_dict(),
        "krippendorff_alpha": krippendorff_alpha(counts, n_boot=n_boot).as_dict(),
    }


def _between(table: Any, names: list[str], n_boot: int) -> list[dict[str, Any]]:
    """Raw agreement and Cohen's kappa on the better response, for each two labelers."""
    there = (table != MISSING).astype(int)
    common = there.T @ there
    ways = sorted(combinations(range(len(names)), 2), key=lambda way: (-common[way], way))
    found = []
    for one, two in ways[:LISTED]:
        if common[one, two] == 0:
            break
        kappa = cohen_kappa(table[:, one], table[:, two], 2, n_boot=n_boot)
        raw = raw_agreement(counts_of(table[:, [one, two]], 2), n_boot=n_boot)
        row = {"first": names[one], "second": names[two], "pairs": int(common[one, two])}
        found.append(row | {"raw": raw.as_dict(), "cohen_kappa": kappa.as_dict()})
    return found


# --- bias ---


def bias(connection: Connection) -> dict[str, Any]:
    """Whether the place on the page, or length, decides.

    Shares of the decided votes on work pairs, with intervals (``_share_by_pair``): for the response shown as
    A (0.5 without a bias, because the order is drawn), and for the longer one in characters (which may well
    be the better one: only against the labels of others is it a bias). "ties": the share of all votes that
    found the two alike in the first question.
    """
    votes = [vote for vote in standing(connection) if vote.role == WORK]
    longer = _longer(connection)
    questions = {
        "hallucination": [(vote, vote.hallucination) for vote in votes],
        "helpfulness": [(vote, vote.helpfulness) for vote in votes],
        "preferred": [(vote, vote.preferred) for vote in votes],
    }
    found: dict[str, Any] = {}
    for question, answers in questions.items():
        decided = [(vote, choice) for vote, choice in answers if choice is not None]
        sided = [(v.n, c == int(v.flipped)) for v, c in decided]
        sized = [(v.n, c == longer[v.n]) for v, c in decided if longer[v.n] is not None]
        found[question] = {"chose_a": _share_by_pair(sided), "chose_longer": _share_by_pair(sized)}
    found["ties"] = _share_by_pair([(vote.n, vote.hallucination is None) for vote in votes])
    return found


def _longer(connection: Connection) -> dict[int, int | None]:
    """Pair -> index of the longer response, None for equal lengths; of the pairs with votes."""
    query = select(pairs.c.n, pairs.c.record).where(pairs.c.votes > 0)
    found: dict[int, int | None] = {}
    for n, record in connection.execute(query):
        first, second = (len(r.text) for r in Preference.model_validate_json(record).responses)
        found[n] = None if first == second else int(second > first)
    return found


def _share_by_pair(values: list[tuple[int, bool]]) -> dict[str, Any]:
    """The share with its interval, and of which kind: Wilson's where each vote is on a pair of its own, as a
    labeler's are; else pairs are drawn again, each with all its votes.
    """
    if len({n for n, _ in values}) == len(values):
        return _share([right for _, right in values]) | {"interval": "wilson"}
    columns, clusters = mean_columns([right for _, right in values]), [n for n, _ in values]
    found = bootstraps(columns, {"share": ratio}, clusters=clusters, n_boot=_resamples(len(values)))
    return found["share"].as_dict() | {"interval": "bootstrap"}


# --- labelers ---


def labelers(connection: Connection, default_limit: int) -> list[LabelerRow]:
    """One row an account, by name."""
    votes = standing(connection)
    longer, gold = _longer(connection), _gold(connection)
    of: dict[int, list[Vote]] = defaultdict(list)
    for vote in votes:
        of[vote.user].append(vote)
    told: dict[tuple[int, str], int] = defaultdict(int)
    last: dict[int, float] = {}
    query = select(events.c.user_id, events.c.kind, func.count(), func.max(events.c.at))
    for user, kind, count, at in connection.execute(query.group_by(events.c.user_id, events.c.kind)):
        told[user, kind] = count
        last[user] = max(at, last.get(user, 0.0))
    peers = _with_others([vote for vote in votes if vote.role == WORK])
    rows = []
    for user in connection.execute(select(users).order_by(users.c.name)):
        own = of[user.id]
        rows.append(_row(user, own, default_limit, told[user.id, "undo"], last, peers, longer, gold))
    return rows


def _row(
    user: Found,
    votes: list[Vote],
    default_limit: int,
    undone: int,
    last: dict[int, float],
    peers: dict[int, list[float]],
    longer: dict[int, int | None],
    gold: dict[int, str],
) -> LabelerRow:
    work = [vote for vote in votes if vote.role == WORK]
    checked = [is_right(gold[v.n], v.hallucination, v.helpfulness) for v in votes if v.role == GOLD]
    decided = [vote for vote in work if vote.preferred is not None]
    return LabelerRow(
        name=user.name,
        role=user.role,
        disabled=bool(user.disabled),
        qualification=user.qualification,
        qualification_right=user.qualification_right,
        limit=user.vote_limit if user.vote_limit is not None else default_limit or None,
        votes=len(work),
        gold=len(checked),
        skips=user.skips,
        undone=undone,
        seconds_browser=_median([v.seconds_browser for v in work]),
        seconds_server=_median([v.seconds_server for v in work]),
        last=last.get(user.id),
        gold_right=_share(checked),
        agreement=_mean(peers.get(user.id, [])),
        chose_a=_share([v.preferred == int(v.flipped) for v in decided]),
        chose_longer=_share([v.preferred == longer[v.n] for v in decided if longer[v.n] is not None]),
        ties=_share([vote.hallucination is None for vote in work]),
    )


def _gold(connection: Connection) -> dict[int, str]:
    rows = connection.execute(select(pairs.c.n, pairs.c.record).where(pairs.c.role == GOLD))
    return {row.n: row.record for row in rows}


def _with_others(votes: list[Vote]) -> dict[int, list[float]]:
    """Labeler -> for each shared pair, the share of the others who prefer the same response."""
    of: dict[int, list[Vote]] = defaultdict(list)
    for vote in votes:
        of[vote.n].append(vote)
    found: dict[int, list[float]] = defaultdict(list)
    for group in of.values():
        same = Counter(vote.preferred for vote in group)
        if len(group) > 1:
            for vote in group:
                found[vote.user].append((same[vote.preferred] - 1) / (len(group) - 1))
    return found


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(statistics.median(known)) if known else None


def _share(hits: Sequence[bool]) -> dict[str, float | int | None]:
    """Of votes each of which is on a pair of its own."""
    return wilson_interval(sum(hits), len(hits)).as_dict()


def _mean(values: Sequence[float]) -> dict[str, float | int | None]:
    if not values:
        return Interval(math.nan, math.nan, math.nan, 0).as_dict()
    return mean_interval(values, n_boot=_resamples(len(values))).as_dict()


def _resamples(items: int) -> int:
    """Fewer of many items, so that a page of figures does not take minutes: their intervals are narrow."""
    return max(200, min(1000, 10_000_000 // max(items, 1)))
