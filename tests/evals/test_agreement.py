"""Agreement against published worked examples, scikit-learn, and direct computation of the definitions."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

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

#: ten subjects put into five categories by fourteen raters: the usual worked example of Fleiss' kappa
FLEISS = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip
NO = MISSING
#: Krippendorff 2011, example C: four observers, twelve units, five values, some missing
KRIPPENDORFF = np.array([
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NO, NO, NO],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NO, 3],
    [NO, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NO],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NO],
]).T  # fmt: skip


def ratings_of(cells: list[list[int]]) -> tuple[list[int], list[int]]:
    pairs = [(a, b) for a, row in enumerate(cells) for b, n in enumerate(row) for _ in range(n)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def test_fleiss_published() -> None:
    found = fleiss_kappa(FLEISS)
    assert found.interval.value == pytest.approx(0.210, abs=0.0005)
    assert found.interval.low < found.interval.value < found.interval.high
    assert found.interval.n == 10 and found.undefined is None


def test_krippendorff_published() -> None:
    counts = counts_of(np.where(KRIPPENDORFF == MISSING, MISSING, KRIPPENDORFF - 1), 5)
    assert krippendorff_alpha(counts).interval.value == pytest.approx(0.743, abs=0.0005)
    assert krippendorff_alpha(counts, "ordinal").interval.value == pytest.approx(0.815, abs=0.0005)
    # the unit that one observer alone has rated is no unit
    assert krippendorff_alpha(counts).interval.n == 11


def test_cohen_published() -> None:
    """Cohen 1960, table 1: 200 patients, three categories, kappa .492."""
    one, two = ratings_of([[88, 10, 2], [14, 40, 6], [18, 10, 12]])
    assert cohen_kappa(one, two, 3).interval.value == pytest.approx(0.492, abs=0.0005)


def test_cohen_by_hand() -> None:
    # p_o = 35/50, p_e = .5 · .6 + .5 · .4
    one, two = ratings_of([[20, 5], [10, 15]])
    assert cohen_kappa(one, two, 2).interval.value == pytest.approx(0.4)


def test_cohen_is_scikit_learns() -> None:
    rng = np.random.default_rng(3)
    one = rng.integers(0, 4, 300)
    two = np.where(rng.random(300) < 0.6, one, rng.integers(0, 4, 300))
    assert cohen_kappa(one, two, 4).interval.value == pytest.approx(cohen_kappa_score(one, two))


def test_raw_by_hand() -> None:
    # two of two agree; one pair of three; none of one: (1 + 1 + 0) / (1 + 3 + 1); a lone rating says nothing
    found = raw_agreement([[2, 0, 0], [2, 0, 1], [0, 1, 1], [0, 0, 1]])
    assert found.interval.value == pytest.approx(2 / 5) and found.interval.n == 3


def test_alpha_by_the_definition() -> None:
    """Observed over expected difference, summed pair of ratings by pair of ratings."""
    rng = np.random.default_rng(5)
    table = rng.integers(0, 3, (40, 4))
    table[rng.random((40, 4)) < 0.3] = MISSING
    units = [[int(v) for v in row if v != MISSING] for row in table]
    units = [unit for unit in units if len(unit) > 1]
    every = [v for unit in units for v in unit]
    n = [every.count(c) for c in range(3)]

    def ordinal(a: int, b: int) -> float:
        low, high = min(a, b), max(a, b)
        return (sum(n[low : high + 1]) - (n[a] + n[b]) / 2) ** 2

    for level, apart in (("nominal", lambda a, b: float(a != b)), ("ordinal", ordinal)):
        seen = sum(
            sum(apart(a, b) for a, b in itertools.permutations(unit, 2)) / (len(unit) - 1) for unit in units
        ) / len(every)
        chance = sum(apart(a, b) for a, b in itertools.permutations(every, 2)) / (
            len(every) * (len(every) - 1)
        )
        found = krippendorff_alpha(counts_of(table, 3), level).interval.value  # type: ignore[arg-type]
        assert found == pytest.approx(1 - seen / chance), level


def test_a_tie_in_the_middle_is_half_a_disagreement() -> None:
    """Ordinal alpha takes "A" against "tie" for less than "A" against "B"; nominal alpha does not."""
    near = [[5, 0, 0], [0, 0, 5], [4, 1, 0], [0, 1, 4]]
    far = [[5, 0, 0], [0, 0, 5], [4, 0, 1], [1, 0, 4]]
    ordinal = [krippendorff_alpha(c, "ordinal").interval.value for c in (near, far)]
    assert ordinal[0] > ordinal[1] + 0.05


def test_the_mean_of_cohens() -> None:
    """Of full ratings, Light's plain mean; of others, by the items that both have rated."""
    rng = np.random.default_rng(7)
    truth = rng.integers(0, 3, 120)
    table = np.stack(
        [np.where(rng.random(120) < p, truth, rng.integers(0, 3, 120)) for p in (0.9, 0.7, 0.5)], 1
    )
    each = [cohen_kappa_score(table[:, a], table[:, b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert mean_cohen_kappa(table, 3).interval.value == pytest.approx(np.mean(each))
    table[40:, 2] = MISSING
    parts = [(0, 1, 120), (0, 2, 40), (1, 2, 40)]
    want = sum(n * cohen_kappa_score(table[:n, a], table[:n, b]) for a, b, n in parts) / 200
    found = mean_cohen_kappa(table, 3).interval
    assert found.value == pytest.approx(want) and found.low < want < found.high


def test_two_raters_have_one_cohen() -> None:
    rng = np.random.default_rng(11)
    table = rng.integers(0, 2, (400, 2))
    alone = cohen_kappa(table[:, 0], table[:, 1], 2).interval
    mean = mean_cohen_kappa(table, 2).interval
    assert mean.value == pytest.approx(alone.value)
    # two ways to draw the same resamples: the ends differ by their noise alone
    assert (mean.low, mean.high) == pytest.approx((alone.low, alone.high), abs=0.02)


def test_intervals_hold_what_they_say() -> None:
    """Of 200 samples of raters of known agreement, about 95 % of the intervals hold the truth."""
    rng = np.random.default_rng(13)
    held = 0
    for trial in range(200):
        truth = rng.integers(0, 2, 150)
        two = np.where(rng.random(150) < 0.8, truth, 1 - truth)
        # p_o = 0.8 of two even categories: kappa = alpha = 0.6
        interval = cohen_kappa(truth, two, 2, n_boot=300, seed=trial).interval
        held += interval.low <= 0.6 <= interval.high
    assert 180 <= held <= 199


@pytest.mark.parametrize("figure", [fleiss_kappa, krippendorff_alpha])
def test_one_category_is_undefined_and_said(figure) -> None:  # type: ignore[no-untyped-def]
    found = figure([[3, 0], [3, 0], [2, 0]])
    assert math.isnan(found.interval.value) and "one category" in found.undefined
    assert found.as_dict()["value"] is None
    # agreement itself is not: all agree
    assert raw_agreement([[3, 0], [3, 0]]).interval.value == 1


def test_one_category_of_two_raters() -> None:
    found = cohen_kappa([1, 1, 1], [1, 1, 1], 2)
    assert math.isnan(found.interval.value) and found.undefined is not None
    found = mean_cohen_kappa([[1, 1, MISSING], [1, 1, 1]], 2)
    assert math.isnan(found.interval.value) and found.undefined is not None


def test_nothing_rated_twice() -> None:
    for found in (raw_agreement([[1, 0]]), fleiss_kappa(np.zeros((0, 2))), krippendorff_alpha([[0, 1]])):
        assert found.interval.n == 0 and found.undefined == "no item has two ratings"
    assert cohen_kappa([0, MISSING], [MISSING, 1], 2).undefined == "no item was rated by both"
    assert mean_cohen_kappa([[0, MISSING]], 2).undefined == "no item was rated by two raters"


def test_perfect_and_worst() -> None:
    perfect = [[2, 0], [0, 2]] * 20
    worst = [[1, 1]] * 40
    assert krippendorff_alpha(perfect).interval.value == 1
    assert fleiss_kappa(perfect).interval.value == 1
    assert fleiss_kappa(worst).interval.value == -1
    # never agreeing, with n = 80 ratings: 1 − 79/80 · 2
    assert krippendorff_alpha(worst).interval.value == pytest.approx(1 - (79 / 80) * 2)


def test_ratings_by_name() -> None:
    table, items, raters = matrix([("p", "ann", 1), ("q", "ann", 0), ("q", "bob", 2)])
    assert table.tolist() == [[1, MISSING], [0, 2]] and (items, raters) == (["p", "q"], ["ann", "bob"])
    with pytest.raises(ValueError, match="twice"):
        matrix([("p", "ann", 1), ("p", "ann", 1)])
    with pytest.raises(ValueError, match=r"0\.\.1"):
        counts_of([[2]], 2)


def test_many_items_and_raters_in_seconds() -> None:
    """28 raters, 10,000 items of which 1,000 have three ratings: what the thesis's project would have."""
    rng = np.random.default_rng(0)
    table = np.full((1000, 28), MISSING)
    for row in table:
        row[rng.choice(28, 3, replace=False)] = rng.integers(0, 3, 3)
    counts = counts_of(table, 3)
    start = time.process_time()
    for figure in (raw_agreement, fleiss_kappa, krippendorff_alpha):
        figure(counts)
    mean_cohen_kappa(table, 3)
    assert time.process_time() - start < 10
