"""Figures with their uncertainty: bootstrap intervals and paired comparisons.

Every figure here is a function of column sums over items (a mean is sum/n, F1 is a function of the sums
of tp, fp and fn). So one bootstrap serves all: draw items (or whole images) with replacement, add up
their columns, apply the function. Seeds make every interval reproducible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
#: from column sums of shape (..., k) to values of shape (...)
Statistic = Callable[[Floats], Floats]

#: drawn indices held in memory at once
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A figure over ``n`` items with its interval: 95 %, and bootstrap percentiles, by default.

    NaN where the figure is undefined, e.g. the precision of a model that never says yes.
    """

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int | None]:
        """JSON values; undefined becomes None."""
        found = {"value": self.value, "low": self.low, "high": self.high}
        return {k: v if math.isfinite(v) else None for k, v in found.items()} | {"n": self.n}


def interval_from(found: dict[str, Any]) -> Interval:
    """The Interval that ``as_dict`` wrote."""
    low, value, high = (math.nan if found[k] is None else float(found[k]) for k in ("low", "value", "high"))
    return Interval(value, low, high, int(found["n"]))


def divide(numerator: ArrayLike, denominator: ArrayLike) -> Floats:
    """Elementwise quotient; NaN where the denominator is 0."""
    top, bottom = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)


def ratio(sums: Floats) -> Floats:
    """Column 0 over column 1: a mean (column 1 all ones), or a ratio of totals."""
    return divide(sums[..., 0], sums[..., 1])


def f1(sums: Floats) -> Floats:
    """F1 from the sums of (tp, fp, fn): 2·tp / (2·tp + fp + fn). 0 where nothing was called positive."""
    tp, fp, fn = sums[..., 0], sums[..., 1], sums[..., 2]
    return np.nan_to_num(divide(2 * tp, 2 * tp + fp + fn), nan=0.0)


def _columns(columns: ArrayLike) -> Floats:
    table = np.asarray(columns, dtype=float)
    if table.ndim != 2 or not len(table):
        raise ValueError(f"columns have shape {table.shape}; give at least one item, as (items, columns)")
    return table


def _by_cluster(table: Floats, clusters: Sequence[Hashable] | None) -> Floats:
    """(items, k) summed to (clusters, k), clusters in order of first appearance."""
    if clusters is None:
        return table
    if len(clusters) != len(table):
        raise ValueError(f"{len(clusters)} cluster names for {len(table)} items; give one for each item")
    codes: dict[Hashable, int] = {}
    index = [codes.setdefault(name, len(codes)) for name in clusters]
    summed = np.zeros((len(codes), table.shape[1]))
    np.add.at(summed, index, table)
    return summed


def resampled_sums(table: Floats, n_boot: int, seed: int) -> Floats:
    """Column sums (n_boot, k) of resamples, each of as many rows as ``table`` (n, k) has."""
    n = len(table)
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // n)
    sums = np.empty((n_boot, table.shape[1]))
    for start in range(0, n_boot, step):
        rows = min(step, n_boot - start)
        drawn = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        sums[start : start + rows] = counts.astype(float) @ table
    return sums


def bootstrap(
    columns: ArrayLike,
    statistic: Statistic,
    *,
    clusters: Sequence[Hashable] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The statistic of the column sums, with its percentile interval; see ``bootstraps``."""
    of = {"": statistic}
    return bootstraps(columns, of, clusters=clusters, n_boot=n_boot, seed=seed, level=level)[""]


def bootstraps(
    columns: ArrayLike,
    statistics: Mapping[str, Statistic],
    *,
    clusters: Sequence[Hashable] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Statistics of the column sums, each with its percentile interval from the same resamples.

    ``columns`` is (items, k). Items are resampled, or with ``clusters`` (one name an item, e.g. its
    image) whole clusters, because answers about one image are not independent. Resamples in which the
    statistic is undefined are left out. Raises ValueError for no items or a wrong number of clusters.
    """
    table = _columns(columns)
    sums = resampled_sums(_by_cluster(table, clusters), n_boot, seed)

    def interval(statistic: Statistic) -> Interval:
        value = float(statistic(table.sum(axis=0)))
        drawn = statistic(sums)
        drawn = drawn[np.isfinite(drawn)]
        if not math.isfinite(value) or not len(drawn):
            return Interval(value, math.nan, math.nan, len(table))
        tail = 50 * (1 - level)
        low, high = np.percentile(drawn, [tail, 100 - tail])
        return Interval(value, float(low), float(high), len(table))

    return {name: interval(statistic) for name, statistic in statistics.items()}


def auroc(
    scores: ArrayLike,
    positive: ArrayLike,
    *,
    clusters: Sequence[Hashable] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Area under the ROC curve: how often a positive's score is above a negative's, ties counting half.

    Undefined (NaN) without positives or negatives. Intervals as in ``bootstrap``, items (or clusters) by
    multinomial weights. Raises ValueError for lists of different lengths.
    """
    score, label = np.asarray(scores, float), np.asarray(positive, bool)
    if score.shape != label.shape or score.ndim != 1:
        raise ValueError(f"{score.size} scores for {label.size} labels; give one label for each score")
    names = list(range(len(score))) if clusters is None else list(clusters)
    if len(names) != len(score):
        raise ValueError(f"{len(names)} clusters for {len(score)} scores; give one for each")
    places = {name: k for k, name in enumerate(dict.fromkeys(names))}
    of = np.array([places[name] for name in names], dtype=int)
    # runs of equal scores, from the lowest up
    _, level_of = np.unique(score, return_inverse=True)

    def area(weights: Floats) -> Floats:
        both = np.zeros((len(weights), int(level_of.max(initial=-1)) + 1, 2))
        for column, chosen in enumerate((~label, label)):
            np.add.at(both[:, :, column].T, level_of[chosen], weights[:, chosen].T)
        below = np.cumsum(both[:, :, 0], axis=1) - both[:, :, 0]
        wins = (both[:, :, 1] * (below + both[:, :, 0] / 2)).sum(axis=1)
        return divide(wins, both[:, :, 0].sum(axis=1) * both[:, :, 1].sum(axis=1))

    value = float(area(np.ones((1, len(score))))[0])
    if not math.isfinite(value):
        return Interval(math.nan, math.nan, math.nan, len(score))
    rng = np.random.default_rng(seed)
    share = np.full(len(places), 1 / len(places))
    # in parts: a weight for every item of every resample at once would take gigabytes on a large set
    size = max(1, _CHUNK // len(score))
    drawn = np.concatenate([
        area(rng.multinomial(len(places), share, size=min(size, n_boot - start))[:, of].astype(float))
        for start in range(0, n_boot, size)
    ])  # fmt: skip
    drawn = drawn[np.isfinite(drawn)]
    tail = 50 * (1 - level)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(value, float(low), float(high), len(score))


def paired_difference(
    columns_a: ArrayLike,
    columns_b: ArrayLike,
    statistic: Statistic,
    *,
    clusters: Sequence[Hashable] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> Interval:
    """statistic(a) − statistic(b) over the same items in the same order, resampled together."""
    a, b = _columns(columns_a), _columns(columns_b)
    if a.shape != b.shape:
        raise ValueError(
            f"shapes {a.shape} and {b.shape} differ; give both models' columns for one set of items"
        )
    k = a.shape[1]

    def difference(sums: Floats) -> Floats:
        return statistic(sums[..., :k]) - statistic(sums[..., k:])

    return bootstrap(np.hstack([a, b]), difference, clusters=clusters, n_boot=n_boot, seed=seed)


def mean_columns(values: ArrayLike) -> Floats:
    """Values (n,) as the (n, 2) columns whose ``ratio`` is their mean."""
    flat = np.asarray(values, dtype=float)
    return np.stack([flat, np.ones_like(flat)], axis=1)


def mean_interval(values: ArrayLike, **options: Any) -> Interval:
    """The mean of values (n,); options as in ``bootstrap``."""
    return bootstrap(mean_columns(values), ratio, **options)


@dataclass(frozen=True)
class McNemar:
    """Items that only one of two models got right, and the exact two-sided p of that split."""

    only_a: int
    only_b: int
    p: float


def mcnemar_exact(right_a: ArrayLike, right_b: ArrayLike) -> McNemar:
    """McNemar's exact (binomial) test on paired right/wrong answers of shape (n,).

    p = min(1, 2·P(X <= min(only_a, only_b))), X ~ Binomial(only_a + only_b, 1/2); 1 without disagreement.
    """
    a, b = np.asarray(right_a, dtype=bool), np.asarray(right_b, dtype=bool)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"shapes {a.shape} and {b.shape}; give one entry for each of the same items")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    n = only_a + only_b
    ways, total = 1, 0
    for k in range(min(only_a, only_b) + 1):
        total += ways
        ways = ways * (n - k) // (k + 1)
    return McNemar(only_a, only_b, min(1.0, 2 * total / 2**n))


#: two-sided 95 % quantiles of Student's t for 1 to 15 degrees of freedom
T95 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314,
)  # fmt: skip
#: the same of the normal distribution
Z95 = 1.959964


def t95(degrees: int) -> float:
    """Two-sided 95 % quantile of Student's t.

    Beyond the table: Fisher and Cornish's expansion in 1/degrees (Abramowitz and Stegun, 26.7.5).
    """
    if degrees <= len(T95):
        return T95[degrees - 1]
    z = Z95
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def t_interval(values: Iterable[float]) -> Interval:
    """Mean of a few independent values (one a seed, say) with Student's t interval (95 %).

    Undefined values (NaN) are left out, and ``n`` says so. One value has no interval.
    """
    x = np.asarray([v for v in values if math.isfinite(v)], float)
    n = len(x)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    half = t95(n - 1) * float(x.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    mean = float(x.mean())
    return Interval(mean, mean - half, mean + half, n)


def wilson_interval(hits: int, n: int) -> Interval:
    """Share of ``n`` independent answers that are hits, with Wilson's score interval (95 %).

    Unlike a bootstrap it has a width where all answers agree: 1 of 1 says little (Wilson 1927; Brown, Cai and
    DasGupta 2001, eq. 4).
    """
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    z, share = Z95, hits / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # what rounding leaves of the ends at 0 and 1
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half), n)
