"""What a reward model's scores depend on: the rows of an audit summed up, with intervals.

A row is one response with its unchanged ``score`` and its scores under ``changes`` (``align.audit.measure``
writes them), each compared with the unchanged one, or with its own ``against``. Intervals are
95 % bootstraps over pictures: responses to one picture are not independent. The spread is the standard
deviation of all unchanged scores; it is drawn anew with every resample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from evals.metrics import Floats, Interval, Statistic, bootstraps, divide, ratio

#: a score counts as moved when it does by more than this share of the spread; less is rounding
MOVED = 0.01

Row = Mapping[str, Any]


def unchanged(row: Row, name: str) -> float:
    """The score that the row's change ``name`` is compared with; NaN where the row has no such change."""
    change = row["changes"].get(name)
    return math.nan if change is None else float(change.get("against", row["score"]))


def figures(
    rows: Sequence[Row],
    contrasts: Mapping[str, tuple[str, str]],
    *,
    n_boot: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures of an audit as JSON values.

    ``changes``: name -> figures of :meth:`_Sample.shift`; ``contrasts``: the same of the difference between
    two changes of one response, the first less the second; ``orders``: how far scores move with the order of
    the facts, None for a model without; ``length``: what length has to do with scores.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("no responses to sum up; give at least one")
    sample = _Sample(rows, n_boot, seed)
    names = dict.fromkeys(name for row in rows for name in row["changes"])
    changed = {name: sample.scores(name) for name in names}
    found: dict[str, Any] = {
        "n": {
            "responses": len(rows),
            "conversations": len({row["id"] for row in rows}),
            "images": len({row["picture"] for row in rows} - {None}),
        },
        "spread": sample.spread().as_dict(),
        "changes": {
            name: sample.shift(scores - sample.unchanged(name), sample.tokens_of(name) - sample.tokens)
            for name, scores in changed.items()
        },
        "contrasts": {
            name: sample.shift(changed[a] - changed[b], sample.tokens_of(a) - sample.tokens_of(b))
            for name, (a, b) in contrasts.items()
            if {a, b} <= changed.keys()
        },
        "orders": sample.orders(),
        "length": sample.length(),
    }
    return found


class _Sample:
    """The rows as columns, one cluster a picture (a conversation where it has none)."""

    def __init__(self, rows: Sequence[Row], n_boot: int, seed: int) -> None:
        self.rows, self.n_boot, self.seed = rows, n_boot, seed
        self.clusters = [row["picture"] or f"no image/{row['id']}" for row in rows]
        self.score = np.array([row["score"] for row in rows], dtype=float)
        self.tokens = np.array([row["tokens"] for row in rows], dtype=float)
        self.middle = self.score - self.score.mean()
        self.sd = float(self.score.std())

    def scores(self, name: str) -> Floats:
        """(n,) scores under a change; NaN where a response does not admit it."""
        return np.array([row["changes"].get(name, {}).get("score", math.nan) for row in self.rows])

    def unchanged(self, name: str) -> Floats:
        """(n,) scores that those under a change are compared with; NaN as in ``scores``."""
        return np.array([unchanged(row, name) for row in self.rows])

    def tokens_of(self, name: str) -> Floats:
        return np.array([row["changes"].get(name, {}).get("tokens", math.nan) for row in self.rows])

    def _intervals(self, columns: ArrayLike, statistics: Mapping[str, Statistic]) -> dict[str, Interval]:
        return bootstraps(columns, statistics, clusters=self.clusters, n_boot=self.n_boot, seed=self.seed)

    def _with_spread(self, *columns: Floats) -> Floats:
        """The columns, then those that ``_spread`` reads."""
        return np.stack([*columns, self.middle, self.middle**2, np.ones_like(self.middle)], axis=1)

    def spread(self) -> Interval:
        """The standard deviation of the unchanged scores."""
        return self._intervals(self._with_spread(), {"": _spread})[""]

    def shift(self, moved: Floats, tokens: Floats) -> dict[str, Any]:
        """Figures of the differences ``moved`` (n,), NaN where there is none.

        ``mean`` and ``size`` (mean of the absolute difference) are in scores, ``relative`` and
        ``relative_size`` in spreads; ``falls`` and ``rises`` are shares of the responses whose score moves by
        more than ``MOVED`` spreads; ``tokens`` is the mean difference in length.
        """
        has = np.isfinite(moved)
        n = int(has.sum())
        d = np.where(has, moved, 0.0)
        least = MOVED * self.sd
        columns = self._with_spread(*(x.astype(float) for x in (has, d, np.abs(d), d < -least, d > least)))

        def mean(column: int) -> Statistic:
            return lambda sums: divide(sums[..., column], sums[..., 0])

        def relative(column: int) -> Statistic:
            return lambda sums: divide(mean(column)(sums), _spread(sums))

        found = self._intervals(
            columns,
            {
                "mean": mean(1), "size": mean(2), "relative": relative(1), "relative_size": relative(2),
                "falls": mean(3), "rises": mean(4),
            },
        )  # fmt: skip
        told: dict[str, Any] = {name: replace(value, n=n).as_dict() for name, value in found.items()}
        return told | {"n": n, "tokens": float(tokens[has].mean()) if n else None}

    def orders(self) -> dict[str, Any] | None:
        """How far the scores of one response lie apart over orders of the facts.

        ``sd``: mean over responses of the standard deviation; ``relative``: of the spread; ``changed``: share
        of the pairs of responses to one conversation of which not the same one is ahead in every order.
        """
        counts = {len(row["orders"]) for row in self.rows}
        if max(counts) < 2:
            return None
        by_order = np.array([row["orders"] for row in self.rows], dtype=float)
        ones, apart = np.ones(len(self.rows)), by_order.std(axis=1, ddof=1)
        pairs, changed = np.zeros_like(ones), np.zeros_like(ones)
        for places in self._together().values():
            for a, b in combinations(places, 2):
                signs = set(np.sign(by_order[a] - by_order[b]))
                pairs[a] += 1
                changed[a] += len(signs) > 1
        columns = self._with_spread(apart, ones, pairs, changed)
        found = self._intervals(
            columns,
            {
                "sd": ratio,
                "relative": lambda sums: divide(ratio(sums), _spread(sums)),
                "changed": lambda sums: divide(sums[..., 3], sums[..., 2]),
            },
        )
        found["changed"] = replace(found["changed"], n=int(pairs.sum()))
        return {"orders": counts.pop()} | {name: value.as_dict() for name, value in found.items()}

    def length(self) -> dict[str, Any]:
        """Pearson's correlation of score and tokens over all responses, and ``within`` conversations: of the
        differences from the mean of the responses to the same question, which it does not mix with."""
        tokens = self.tokens - self.tokens.mean()
        within = [np.zeros_like(tokens), np.zeros_like(tokens)]
        for places in self._together().values():
            for of, values in zip(within, (self.score, self.tokens)):
                of[places] = values[places] - values[places].mean()
        over, same = (
            np.stack([x, y, x * x, y * y, x * y, np.ones_like(x)], axis=1)
            for x, y in ((self.middle, tokens), within)
        )
        several = sum(len(places) for places in self._together().values() if len(places) > 1)
        inside = replace(self._intervals(same, {"": _correlation})[""], n=several)
        return {
            "correlation": self._intervals(over, {"": _correlation})[""].as_dict(),
            "within": inside.as_dict(),
            "tokens": float(self.tokens.mean()),
        }

    def _together(self) -> dict[str, list[int]]:
        """Conversation -> the places of its responses."""
        found: dict[str, list[int]] = {}
        for place, row in enumerate(self.rows):
            found.setdefault(row["id"], []).append(place)
        return found


def _spread(sums: Floats) -> Floats:
    """The standard deviation from the last three columns: centred scores, their squares, ones."""
    mean, square = divide(sums[..., -3], sums[..., -1]), divide(sums[..., -2], sums[..., -1])
    return np.sqrt(np.maximum(square - mean**2, 0.0))


def _correlation(sums: Floats) -> Floats:
    """Pearson's, from the sums of (x, y, x², y², xy, 1); NaN where one does not vary."""
    x, y, xx, yy, xy, n = np.moveaxis(sums, -1, 0)
    scale = np.maximum(xx - x * x / n, 0.0) * np.maximum(yy - y * y / n, 0.0)
    return divide(xy - x * y / n, np.sqrt(scale))
