"""How far people who label the same items agree, beyond what chance would give them.

Items are rows, categories columns: ``counts`` (items, categories) says how many raters put an item into a
category, and items with fewer than two ratings say nothing and are left out. Every figure but the mean of
Cohen's kappas is a function of sums over items, so ``evals.metrics.bootstraps`` gives its interval: items
are drawn with replacement, never single ratings, because those of one item belong together.

Sources: Cohen 1960 (Educational and Psychological Measurement 20), Fleiss 1971 (Psychological Bulletin 76),
Light 1971 (the same 76), Krippendorff 2011 (Computing Krippendorff's Alpha-Reliability).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evals.metrics import Floats, Interval, bootstrap, bootstraps, divide, ratio

Ints = NDArray[np.int64]
#: a rating that is not there
MISSING = -1
#: drawn weights held in memory at once
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Agreement:
    """A figure with its interval over items; where it is NaN, ``undefined`` says why."""

    interval: Interval
    undefined: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON values: value, low, high, n, and undefined."""
        return {**self.interval.as_dict(), "undefined": self.undefined}


def matrix(ratings: Iterable[tuple[object, object, int]]) -> tuple[Ints, list[object], list[object]]:
    """(item, rater, category) triples as (items, raters) with ``MISSING``, and the names of both, in order of
    appearance. Raises ValueError for two ratings of one item by one rater."""
    found: dict[tuple[int, int], int] = {}
    items: dict[object, int] = {}
    raters: dict[object, int] = {}
    for item, rater, category in ratings:
        place = items.setdefault(item, len(items)), raters.setdefault(rater, len(raters))
        if place in found:
            raise ValueError(f"rater {rater!r} rated item {item!r} twice; give each rating once")
        found[place] = category
    table = np.full((len(items), len(raters)), MISSING, dtype=np.int64)
    if found:
        table[tuple(np.array(list(found)).T)] = list(found.values())
    return table, list(items), list(raters)


def counts_of(table: ArrayLike, categories: int) -> Ints:
    """Ratings (items, raters) in 0..categories-1, or ``MISSING``, as counts (items, categories).

    Raises ValueError for a rating outside that.
    """
    ratings = np.asarray(table, dtype=np.int64)
    if ratings.ndim != 2 or ((ratings < MISSING) | (ratings >= categories)).any():
        rule = f"ratings of shape {ratings.shape}"
        raise ValueError(f"{rule}; give (items, raters) of 0..{categories - 1}, or {MISSING} for none")
    return np.stack([(ratings == c).sum(axis=1) for c in range(categories)], axis=1)


def _rated(counts: ArrayLike) -> Floats:
    table = np.asarray(counts, dtype=float)
    if table.ndim != 2 or (table < 0).any():
        raise ValueError(f"counts of shape {table.shape}; give (items, categories), none below 0")
    return table[table.sum(axis=1) >= 2]


def _agreement(counts: ArrayLike, columns: Any, statistic: Any, n_boot: int, seed: int) -> Agreement:
    """The statistic of columns made from the items with two ratings or more."""
    table = _rated(counts)
    if not len(table):
        return Agreement(Interval(math.nan, math.nan, math.nan, 0), "no item has two ratings")
    interval = bootstrap(columns(table), statistic, n_boot=n_boot, seed=seed)
    return Agreement(interval, None if math.isfinite(interval.value) else _ONE)


_ONE = "every rating is of one category, so chance would agree as often"


def raw_agreement(counts: ArrayLike, *, n_boot: int = 1000, seed: int = 0) -> Agreement:
    """Share of the pairs of raters of an item that agree, over all items' pairs."""

    def columns(table: Floats) -> Floats:
        m = table.sum(axis=1)
        return np.stack([(table * (table - 1)).sum(axis=1), m * (m - 1)], axis=1)

    return _agreement(counts, columns, ratio, n_boot, seed)


def fleiss_kappa(counts: ArrayLike, *, n_boot: int = 1000, seed: int = 0) -> Agreement:
    """Fleiss' kappa: (mean P_i − Σ p_j²) / (1 − Σ p_j²).

    P_i is the share of agreeing pairs of raters of item i, p_j the share of all ratings in category j. Fleiss
    has as many raters for every item; with other numbers, items weigh alike in the mean and ratings in p_j.
    """

    def columns(table: Floats) -> Floats:
        m = table.sum(axis=1)
        agree = (table * (table - 1)).sum(axis=1) / (m * (m - 1))
        return np.column_stack([agree, np.ones(len(table)), table])

    def statistic(sums: Floats) -> Floats:
        totals = sums[..., 2:]
        shares = divide(totals, totals.sum(axis=-1, keepdims=True))
        return _beyond(ratio(sums), (shares**2).sum(axis=-1))

    return _agreement(counts, columns, statistic, n_boot, seed)


def _beyond(observed: Floats, chance: Floats) -> Floats:
    """(observed − chance) / (1 − chance); NaN where chance agrees always."""
    left = 1 - np.asarray(chance, float)
    # 1 within rounding: shares that add up to 1 are squared
    return divide(observed - chance, np.where(np.abs(left) < 1e-12, 0.0, left))


def krippendorff_alpha(
    counts: ArrayLike,
    level: Literal["nominal", "ordinal"] = "nominal",
    *,
    n_boot: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Krippendorff's alpha, 1 − D_o / D_e, of any number of raters an item, missing ratings among them.

    From the coincidences o_ck = Σ_u (n_uc · n_uk, or n_uc · (n_uc − 1) for c = k) / (m_u − 1) and their
    margins n_c. The difference of two categories is 1 ("nominal"), or, of ordered categories (the columns'
    order), the square of (Σ_{g=c..k} n_g) − (n_c + n_k) / 2 ("ordinal"), which each resample has of its own.
    """
    size = np.asarray(counts).shape[-1]

    def columns(table: Floats) -> Floats:
        products = table[:, :, None] * table[:, None, :]
        products[:, range(size), range(size)] -= table
        return (products / (table.sum(axis=1) - 1)[:, None, None]).reshape(len(table), size * size)

    def statistic(sums: Floats) -> Floats:
        coincidences = sums.reshape(*sums.shape[:-1], size, size)
        margins = coincidences.sum(axis=-1)
        apart = _apart(margins, level)
        total = margins.sum(axis=-1)
        seen = (coincidences * apart).sum(axis=(-2, -1))
        by_chance = (margins[..., :, None] * margins[..., None, :] * apart).sum(axis=(-2, -1))
        return 1 - (total - 1) * divide(seen, by_chance)

    return _agreement(counts, columns, statistic, n_boot, seed)


def _apart(margins: Floats, level: str) -> Floats:
    """Squared differences (..., k, k) between categories."""
    size = margins.shape[-1]
    if level == "nominal":
        return np.broadcast_to(1 - np.eye(size), (*margins.shape, size))
    if level != "ordinal":
        raise ValueError(f"{level!r} is no level of measurement here; use nominal or ordinal")
    upto = np.cumsum(margins, axis=-1)
    # halves of the first and the last category, and all of those between
    middle = upto - margins / 2
    return (middle[..., :, None] - middle[..., None, :]) ** 2


def cohen_kappa(
    first: ArrayLike, second: ArrayLike, categories: int, *, n_boot: int = 1000, seed: int = 0
) -> Agreement:
    """Cohen's kappa of two raters: (p_o − p_e) / (1 − p_e), p_e from each rater's own shares.

    ``first``, ``second``: (items,) ratings in 0..categories-1; items that lack one are left out.
    """
    one, two = np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64)
    if one.shape != two.shape or one.ndim != 1:
        raise ValueError(f"ratings of shapes {one.shape} and {two.shape}; give one of each for every item")
    counts_of(np.stack([one, two], axis=1), categories)
    both = (one != MISSING) & (two != MISSING)
    if not both.any():
        return Agreement(Interval(math.nan, math.nan, math.nan, 0), "no item was rated by both")
    cells = np.eye(categories * categories)[one[both] * categories + two[both]]
    found = bootstraps(cells, {"kappa": lambda sums: _kappa(sums, categories)}, n_boot=n_boot, seed=seed)
    interval = found["kappa"]
    return Agreement(interval, None if math.isfinite(interval.value) else _ONE)


def _kappa(cells: Floats, categories: int) -> Floats:
    """From sums of the cells (first · categories + second), shape (..., categories²)."""
    table = cells.reshape(*cells.shape[:-1], categories, categories)
    shares = divide(table, table.sum(axis=(-2, -1), keepdims=True))
    chance = (shares.sum(axis=-1) * shares.sum(axis=-2)).sum(axis=-1)
    return _beyond(np.trace(shares, axis1=-2, axis2=-1), chance)


def mean_cohen_kappa(table: ArrayLike, categories: int, *, n_boot: int = 1000, seed: int = 0) -> Agreement:
    """Mean of Cohen's kappas over all pairs of raters, each weighing as many items as both rated.

    ``table``: (items, raters), see ``counts_of``. Light's kappa is the plain mean; where every rater rated
    every item, the two are the same. Pairs whose kappa is undefined are left out, in resamples too.
    """
    ratings = np.asarray(table, dtype=np.int64)
    counts_of(ratings, categories)
    blocks: list[tuple[Ints, Floats]] = []
    for one, two in combinations(range(ratings.shape[1]), 2):
        (items,) = np.nonzero((ratings[:, one] != MISSING) & (ratings[:, two] != MISSING))
        if len(items):
            cells = ratings[items, one] * categories + ratings[items, two]
            blocks.append((items, np.eye(categories * categories)[cells]))
    if not blocks:
        return Agreement(Interval(math.nan, math.nan, math.nan, 0), "no item was rated by two raters")
    rated = np.unique(np.concatenate([items for items, _ in blocks]))
    place = np.searchsorted(rated, np.arange(len(ratings)))
    value = float(_mean(np.ones((1, len(rated))), blocks, place, categories)[0])
    if not math.isfinite(value):
        return Agreement(Interval(math.nan, math.nan, math.nan, len(rated)), _ONE)
    drawn = _resampled(blocks, place, len(rated), categories, n_boot, seed)
    low, high = np.percentile(drawn[np.isfinite(drawn)], [2.5, 97.5])
    return Agreement(Interval(value, float(low), float(high), len(rated)))


def _resampled(
    blocks: Sequence[tuple[Ints, Floats]], place: Ints, items: int, categories: int, n_boot: int, seed: int
) -> Floats:
    rng = np.random.default_rng(seed)
    share = np.full(items, 1 / items)
    size = max(1, _CHUNK // items)
    parts = []
    for start in range(0, n_boot, size):
        weights = rng.multinomial(items, share, size=min(size, n_boot - start)).astype(float)
        parts.append(_mean(weights, blocks, place, categories))
    return np.concatenate(parts)


def _mean(weights: Floats, blocks: Sequence[tuple[Ints, Floats]], place: Ints, categories: int) -> Floats:
    """The weighted mean kappa (resamples,) of items that count ``weights`` (resamples, items) times."""
    top, bottom = np.zeros(len(weights)), np.zeros(len(weights))
    for items, cells in blocks:
        sums = weights[:, place[items]] @ cells
        kappa = _kappa(sums, categories)
        known = np.isfinite(kappa)
        weight = np.where(known, sums.sum(axis=1), 0.0)
        top += weight * np.where(known, kappa, 0.0)
        bottom += weight
    return divide(top, bottom)
