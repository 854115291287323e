"""Hallucinations of two models' descriptions compared where both name equally much.

A model can lower its rates by saying less. Two ways to take that out stand here: responses weighted to equal
recall, and descriptions cut to it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evals.metrics import Floats, Interval, Statistic, bootstrap, divide


@dataclass(frozen=True)
class Mentions:
    """What n descriptions name: integer arrays of shape (n,)."""

    #: mentions of objects that are not there, repeats included
    false: NDArray[np.int64]
    #: all mentions, repeats included
    total: NDArray[np.int64]
    #: distinct true objects named
    named: NDArray[np.int64]
    #: distinct objects in the image
    present: NDArray[np.int64]

    def __post_init__(self) -> None:
        shapes = {np.shape(v) for v in (self.false, self.total, self.named, self.present)}
        if len(shapes) != 1 or len(shapes.copy().pop()) != 1:
            raise ValueError(f"shapes {sorted(shapes)}; give four arrays of one length")
        if np.any(self.false > self.total) or np.any(self.named > self.present):
            raise ValueError("false must not exceed total, nor named exceed present, in any response")


@dataclass(frozen=True)
class Matched:
    """One figure of two models at matched recall."""

    a: Interval
    b: Interval
    difference: Interval

    def as_dict(self) -> dict[str, dict[str, float | int | None]]:
        """JSON values."""
        return {"a": self.a.as_dict(), "b": self.b.as_dict(), "difference": self.difference.as_dict()}


@dataclass(frozen=True)
class MatchedRecall:
    """Two models compared where they name equally much; see ``matched_recall``."""

    hallucination_rate: Matched
    chair_i: Matched
    #: the recall that both models have after weighting
    recall: float
    #: (objects in the image, true objects named) cells in which both models have responses
    strata: int
    #: share of each model's responses that lie in those cells
    share_a: float
    share_b: float


def matched_recall(
    a: Mentions,
    b: Mentions,
    *,
    clusters: Sequence[Hashable] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> MatchedRecall:
    """Hallucination rate and CHAIR_i of two models at equal recall: Mantel-Haenszel standardisation.

    A model can lower its hallucination rate by naming less. So responses are put into strata
    s = (objects in the image, distinct true objects named), inside which recall is one number; each
    model's mean per response in s (share with a false object, false mentions, mentions) is averaged
    over s with the common weights w_s = n_as·n_bs / (n_as + n_bs), the Mantel-Haenszel weights of a
    risk difference. Strata that only one model reaches weigh 0. Both weighted samples then have the
    same recall exactly. CHAIR_i is the ratio of the two weighted means. Intervals resample items
    (or ``clusters``) with both models' responses together, weights recomputed each time.

    It describes the responses given; it does not say what a model would have said, had it been made
    to name more. It favours the model that says less where the number of mentions is what both have in
    common: of two responses with as many mentions, the one that names fewer true objects names more false
    ones. ``equal_recall`` does not. Undefined (NaN) where no stratum is shared. Raises ValueError unless
    both models answered the same items (equal ``present``).
    """
    if not np.array_equal(a.present, b.present):
        raise ValueError("the two models' responses are about different items; join them by id first")
    cells = np.stack([a.present, a.named], 1), np.stack([b.present, b.named], 1)
    strata, codes = np.unique(np.concatenate(cells), axis=0, return_inverse=True)
    codes = codes.ravel()
    size, n = len(strata), len(a.present)
    table = np.hstack([_stratum_columns(a, codes[:n], size), _stratum_columns(b, codes[n:], size)])

    def figure(take: Callable[[Floats, Floats], Floats]) -> Statistic:
        return lambda sums: take(*_weighted(sums, size))

    def matched(of: Callable[[Floats], Floats]) -> Matched:
        found = [
            bootstrap(table, figure(take), clusters=clusters, n_boot=n_boot, seed=seed)
            for take in (lambda x, y: of(x), lambda x, y: of(y), lambda x, y: of(x) - of(y))
        ]
        return Matched(*found)

    sums = table.sum(axis=0).reshape(2, 4, size)
    common = (sums[0, 0] > 0) & (sums[1, 0] > 0)
    weights = divide(sums[0, 0] * sums[1, 0], sums[0, 0] + sums[1, 0])
    return MatchedRecall(
        hallucination_rate=matched(lambda means: means[..., 0]),
        chair_i=matched(lambda means: divide(means[..., 1], means[..., 2])),
        recall=float(divide(weights @ strata[:, 1], weights @ strata[:, 0])),
        strata=int(common.sum()),
        share_a=float(sums[0, 0][common].sum() / n),
        share_b=float(sums[1, 0][common].sum() / n),
    )


@dataclass(frozen=True)
class Prefixes:
    """What the first k mentions of each of n descriptions name, k = 0 .. K: arrays of shape (n, K + 1)."""

    #: false mentions among the first k; mentions; distinct true objects
    false: Floats
    total: Floats
    named: Floats
    #: distinct objects in the image, shape (n,)
    present: Floats


def prefixes(mentions: Sequence[Sequence[tuple[str, bool]]], present: Sequence[int]) -> Prefixes:
    """From each description's mentions in order, as (object, whether it is there)."""
    longest = max((len(row) for row in mentions), default=0)
    table = np.zeros((3, len(mentions), longest + 1))
    for i, row in enumerate(mentions):
        seen: set[str] = set()
        false = 0
        for k in range(1, longest + 1):
            if k <= len(row):
                name, there = row[k - 1]
                false += not there
                if there:
                    seen.add(name)
            table[:, i, k] = false, min(k, len(row)), len(seen)
    return Prefixes(table[0], table[1], table[2], np.asarray(present, float))


@dataclass(frozen=True)
class EqualRecall:
    """Two models compared where the one that names more is cut short; see ``equal_recall``."""

    hallucination_rate: Matched
    chair_i: Matched
    #: the recall that both then have
    recall: float


def equal_recall(
    a: Prefixes,
    b: Prefixes,
    *,
    clusters: Sequence[Hashable] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> EqualRecall:
    """Hallucination rate and CHAIR_i with the model of higher recall cut to the recall of the other.

    All its descriptions stop after their first k mentions, a share of them after k + 1, with k and the
    share such that the summed recall is the other's. So a model is compared with what the other had said by
    the time that it had named as much, and one that is the same but stops sooner does not differ.
    Intervals resample items (or ``clusters``) and cut anew each time. Raises ValueError unless both models
    answered the same items (equal ``present``).
    """
    if not np.array_equal(a.present, b.present):
        raise ValueError("the two models' responses are about different items; join them by id first")
    blocks = [_prefix_columns(model) for model in (a, b)]
    widths = [model.named.shape[1] for model in (a, b)]
    table = np.hstack([*blocks, a.present[:, None], np.ones((len(a.present), 1))])

    def figures(sums: Floats) -> tuple[Floats, Floats]:
        """(..., 2) rates and (..., 2) CHAIR_i of both models at the recall of the lower one."""
        parts = np.split(sums[..., :-2], [4 * widths[0]], axis=-1)
        cubes = [part.reshape(*part.shape[:-1], 4, width) for part, width in zip(parts, widths)]
        target = np.minimum(cubes[0][..., 2, -1], cubes[1][..., 2, -1])
        found = [_at_recall(cube, target) for cube in cubes]
        rate = np.stack([divide(hallucinated, sums[..., -1]) for hallucinated, _, _ in found], axis=-1)
        chair = np.stack([divide(false, total) for _, false, total in found], axis=-1)
        return rate, chair

    def matched(which: int) -> Matched:
        of: list[Statistic] = [
            lambda sums: figures(sums)[which][..., 0],
            lambda sums: figures(sums)[which][..., 1],
            lambda sums: figures(sums)[which][..., 0] - figures(sums)[which][..., 1],
        ]
        return Matched(*(bootstrap(table, f, clusters=clusters, n_boot=n_boot, seed=seed) for f in of))

    lower = min(float(model.named[:, -1].sum()) for model in (a, b))
    return EqualRecall(matched(0), matched(1), float(divide(lower, a.present.sum())))


def _prefix_columns(model: Prefixes) -> Floats:
    """(n, 4·(K + 1)): hallucinated, false, named, total, each for k = 0 .. K."""
    return np.hstack([model.false > 0, model.false, model.named, model.total]).astype(float)


def _at_recall(cube: Floats, target: Floats) -> tuple[Floats, Floats, Floats]:
    """Hallucinated, false and total of sums (..., 4, K + 1), cut where ``named`` reaches the target (...)."""
    named = cube[..., 2, :]
    # a model that has no more than the target is left whole, with what it says after its last true object
    whole = named[..., -1] <= target
    last = named.shape[-1] - 1
    upper = np.where(whole, last, (named >= target[..., None]).argmax(-1))
    lower = np.maximum(upper - 1, 0)

    def at(row: int, k: NDArray[np.int64]) -> Floats:
        return np.take_along_axis(cube[..., row, :], k[..., None], axis=-1)[..., 0]

    share = np.nan_to_num(divide(target - at(2, lower), at(2, upper) - at(2, lower)), nan=1.0)
    share = np.where(whole, 1.0, share)
    hallucinated, false, total = ((1 - share) * at(row, lower) + share * at(row, upper) for row in (0, 1, 3))
    return hallucinated, false, total


def _stratum_columns(m: Mentions, codes: NDArray[np.int64], size: int) -> Floats:
    """(n, 4·size): each response's (1, hallucinated, false, total) in the columns of its stratum."""
    values = np.stack([np.ones_like(m.false), m.false > 0, m.false, m.total], axis=1)
    columns = np.zeros((len(codes), 4, size))
    columns[np.arange(len(codes)), :, codes] = values
    return columns.reshape(len(codes), -1)


def _weighted(sums: Floats, size: int) -> tuple[Floats, Floats]:
    """Sums (..., 2·4·size) to both models' weighted means (..., 3) of hallucinated, false, total."""
    cube = sums.reshape(*sums.shape[:-1], 2, 4, size)
    counts = cube[..., 0, :]
    weights = np.nan_to_num(divide(counts.prod(axis=-2), counts.sum(axis=-2)))
    means = np.nan_to_num(divide(cube[..., 1:, :], counts[..., None, :]))
    total = divide((means * weights[..., None, None, :]).sum(axis=-1), weights.sum(axis=-1)[..., None, None])
    return total[..., 0, :], total[..., 1, :]
