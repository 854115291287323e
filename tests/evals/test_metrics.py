from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from evals import metrics, recall
from evals.metrics import t95, t_interval
from evals.recall import Mentions


def test_mean_interval_agrees_with_a_plain_loop() -> None:
    values = np.random.default_rng(3).normal(size=40)
    got = metrics.mean_interval(values, n_boot=200, seed=7)
    draws = np.random.default_rng(7).integers(0, 40, (200, 40))
    means = [values[row].mean() for row in draws]
    assert got.value == pytest.approx(values.mean())
    assert (got.low, got.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))
    assert got.n == 40


def test_interval_has_the_normal_width() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    got = metrics.mean_interval(values, n_boot=2000)
    assert (got.high - got.low) / 2 == pytest.approx(1.96 * values.std() / math.sqrt(2000), rel=0.06)


def test_chunks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.random.default_rng(1).integers(0, 5, (30, 2)).astype(float)
    whole = metrics.resampled_sums(table, 50, seed=4)
    monkeypatch.setattr(metrics, "_CHUNK", 70)
    assert np.array_equal(metrics.resampled_sums(table, 50, seed=4), whole)


def test_clusters_widen_the_interval_of_copied_answers() -> None:
    values = np.repeat(np.random.default_rng(2).normal(size=50), 10)
    names = [f"image {i // 10}" for i in range(500)]
    alone = metrics.mean_interval(values)
    clustered = metrics.mean_interval(values, clusters=names)
    assert clustered.value == alone.value and clustered.n == 500
    # ten copies of everything say nothing new: wider by the square root of ten
    assert (clustered.high - clustered.low) / (alone.high - alone.low) == pytest.approx(10**0.5, rel=0.15)
    shuffled = np.random.default_rng(5).permutation(500)
    assert metrics.mean_interval(
        values[shuffled], clusters=[names[i] for i in shuffled]
    ).value == pytest.approx(alone.value)


def test_f1_and_undefined_figures() -> None:
    assert metrics.f1(np.array([3.0, 1.0, 2.0])) == pytest.approx(6 / 9)
    assert metrics.f1(np.zeros(3)) == 0
    got = metrics.bootstrap(np.zeros((4, 2)), metrics.ratio)
    assert math.isnan(got.value)
    assert got.as_dict() == {"value": None, "low": None, "high": None, "n": 4}
    assert math.isnan(metrics.interval_from(got.as_dict()).low)
    assert metrics.interval_from({"value": 1, "low": 0.5, "high": 2, "n": 3}) == metrics.Interval(
        1, 0.5, 2, 3
    )


def test_paired_difference_uses_the_pairing() -> None:
    base = np.random.default_rng(0).normal(size=300) * 10
    got = metrics.paired_difference(
        metrics.mean_columns(base + 1), metrics.mean_columns(base), metrics.ratio, n_boot=300
    )
    # each pair differs by exactly 1, so nothing is left to chance
    assert (got.low, got.value, got.high) == pytest.approx((1, 1, 1))


def test_mcnemar_against_exact_fractions() -> None:
    a = [1] * 9 + [0] * 2 + [1] * 5
    b = [0] * 9 + [1] * 2 + [1] * 5
    got = metrics.mcnemar_exact(a, b)
    want = 2 * Fraction(1 + 11 + 55, 2**11)
    assert (got.only_a, got.only_b) == (9, 2) and got.p == pytest.approx(float(want))
    assert metrics.mcnemar_exact([1, 0], [1, 0]).p == 1
    assert metrics.mcnemar_exact([1, 0], [0, 1]).p == 1
    assert metrics.mcnemar_exact([1] * 4000, [0] * 4000).p == 0


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        metrics.mean_interval([])
    with pytest.raises(ValueError, match="2 cluster names for 3 items"):
        metrics.mean_interval([1, 2, 3], clusters=["a", "b"])
    with pytest.raises(ValueError, match="false must not exceed total"):
        _mentions([(2, 1, 0, 1)])
    with pytest.raises(ValueError, match="different items"):
        recall.matched_recall(_mentions([(0, 1, 1, 2)]), _mentions([(0, 1, 1, 3)]))


def _mentions(rows: list[tuple[int, int, int, int]]) -> Mentions:
    return Mentions(*np.array(rows, dtype=np.int64).T)


def test_matched_recall_by_hand() -> None:
    # rows: false, total, named, present. Strata (present, named) shared by both: (3, 1) and (3, 2).
    a = _mentions([(1, 2, 1, 3), (0, 1, 1, 3), (0, 2, 2, 3), (2, 5, 3, 3)])
    b = _mentions([(1, 2, 1, 3), (1, 3, 2, 3), (0, 2, 2, 3), (1, 3, 2, 3)])
    got = recall.matched_recall(a, b, n_boot=50)
    # weights: (3,1): 2*1/3; (3,2): 1*3/4. Rates of a: 1/2, 0; of b: 1, 2/3
    w1, w2 = 2 / 3, 3 / 4
    rate_a, rate_b = w1 * 0.5 / (w1 + w2), (w1 * 1 + w2 * 2 / 3) / (w1 + w2)
    assert got.hallucination_rate.a.value == pytest.approx(rate_a)
    assert got.hallucination_rate.b.value == pytest.approx(rate_b)
    assert got.hallucination_rate.difference.value == pytest.approx(rate_a - rate_b)
    # mean false and mean mentions in the strata: a: .5/1.5, 0/2; b: 1/2, (2/3)/(8/3)
    assert got.chair_i.a.value == pytest.approx(w1 * 0.5 / (w1 * 1.5 + w2 * 2))
    assert got.chair_i.b.value == pytest.approx((w1 * 1 + w2 * 2 / 3) / (w1 * 2 + w2 * 8 / 3))
    assert got.recall == pytest.approx((w1 * 1 + w2 * 2) / (3 * (w1 + w2)))
    assert (got.strata, got.share_a, got.share_b) == (2, 0.75, 1.0)


#: chance of a false object by the number of true objects named, out of three
RISK = np.array([0.0, 0.25, 0.5, 0.75])


def _exact(counts: list[int], risk: np.ndarray) -> Mentions:
    """``counts[k]`` responses that name k of three objects, the share risk[k] of them with a false one."""
    rows = []
    for named, count in enumerate(counts):
        wrong = round(count * risk[named])
        rows += [(int(i < wrong), named + int(i < wrong), named, 3) for i in range(count)]
    return _mentions(rows)


def test_matched_recall_sees_through_a_model_that_merely_says_less() -> None:
    talkative, terse = _exact([40, 80, 120, 760], RISK), _exact([400, 400, 160, 40], RISK)
    raw = metrics.paired_difference(
        metrics.mean_columns(talkative.false > 0), metrics.mean_columns(terse.false > 0), metrics.ratio
    )
    assert raw.value == pytest.approx(0.65 - 0.21) and raw.low > 0.3
    matched = recall.matched_recall(talkative, terse)
    assert matched.hallucination_rate.difference.value == pytest.approx(0, abs=1e-12)
    assert matched.chair_i.difference.value == pytest.approx(0, abs=1e-12)
    # a model that errs half as often in every stratum shows exactly that, although it says more
    better = recall.matched_recall(_exact([40, 80, 120, 760], RISK / 2), terse).hallucination_rate
    assert better.a.value == pytest.approx(better.b.value / 2) and better.difference.high < 0


def test_matched_recall_interval_covers_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        models = []
        for rate in (0.8, 0.4):
            named = rng.binomial(3, rate, 400)
            false = (rng.random(400) < RISK[named]).astype(np.int64)
            models.append(Mentions(false, named + false, named, np.full(400, 3)))
        got = recall.matched_recall(*models, n_boot=200).hallucination_rate.difference
        covered += got.low <= 0 <= got.high
    # 95 % of 60 is 57; fewer than 52 would happen by chance about once in fifty times
    assert covered >= 52


def test_matched_recall_without_common_ground_is_undefined() -> None:
    got = recall.matched_recall(_mentions([(0, 1, 1, 2)]), _mentions([(0, 2, 2, 2)]), n_boot=20)
    assert math.isnan(got.hallucination_rate.difference.value) and math.isnan(got.recall) and got.strata == 0


def _said(rng: np.random.Generator, n: int, mentions: int, wrong: float) -> list[list[tuple[str, bool]]]:
    """n descriptions of ``mentions`` different objects, each false by chance ``wrong``."""
    return [[(f"object {k}", bool(rng.random() >= wrong)) for k in range(mentions)] for _ in range(n)]


def test_a_model_that_only_stops_sooner_does_not_differ_at_equal_recall() -> None:
    """The very case in which ``matched_recall`` finds a large difference."""
    rng = np.random.default_rng(0)
    longer = _said(rng, 2000, 5, 0.4)
    shorter = [row[:3] for row in longer]
    present = [8] * 2000
    a, b = recall.prefixes(shorter, present), recall.prefixes(longer, present)
    got = recall.equal_recall(a, b, n_boot=200)
    for figure in (got.hallucination_rate, got.chair_i):
        assert figure.difference.value == pytest.approx(0, abs=1e-9)
        assert figure.difference.low == pytest.approx(0, abs=1e-9)
    # and one that errs less is seen, although it says less
    careful = recall.prefixes([row[:3] for row in _said(rng, 2000, 5, 0.2)], present)
    assert recall.equal_recall(careful, b, n_boot=200).chair_i.difference.high < -0.15

    def counts(prefixes: recall.Prefixes) -> Mentions:
        columns = (prefixes.false, prefixes.total, prefixes.named)
        return Mentions(*(c[:, -1].astype(np.int64) for c in columns), np.full(2000, 8))

    weighted = recall.matched_recall(counts(a), counts(b), n_boot=50)
    assert weighted.chair_i.difference.high < -0.2


def test_equal_recall_by_hand() -> None:
    present = [2, 2]
    # b names all: two true objects first in one text, a false one first in the other; a names half of them
    b = recall.prefixes(
        [[("x", True), ("y", True), ("z", False)], [("z", False), ("x", True), ("y", True)]], present
    )
    a = recall.prefixes([[("x", True)], [("x", True), ("w", False), ("w", False)]], present)
    got = recall.equal_recall(a, b, n_boot=20)
    # a: 2 named of 4. b after one mention: 1 named, 1 of 2 false; after two: 3 named, still 1 text false.
    # 2 named is half-way: mentions 3, false 1, one text of two
    assert got.recall == 0.5
    assert got.hallucination_rate.a.value == 0.5 and got.hallucination_rate.b.value == 0.5
    assert got.chair_i.a.value == pytest.approx(2 / 4) and got.chair_i.b.value == pytest.approx(1 / 3)


def test_silence_has_no_chair_at_equal_recall() -> None:
    present = [2, 2]
    silent = recall.prefixes([[], []], present)
    other = recall.prefixes([[("x", True)], [("y", False)]], present)
    got = recall.equal_recall(silent, other, n_boot=20)
    assert got.recall == 0 and math.isnan(got.chair_i.a.value) and got.hallucination_rate.a.value == 0
    with pytest.raises(ValueError, match="different items"):
        recall.equal_recall(silent, recall.prefixes([[], []], [2, 3]))


def test_equal_models_differ_by_nothing() -> None:
    m = _exact([40, 60, 60, 40], RISK)
    got = recall.matched_recall(m, m, n_boot=100)
    assert got.chair_i.difference == metrics.Interval(0, 0, 0, 200)
    # matching a model with itself leaves its own figures
    assert got.hallucination_rate.a.value == pytest.approx((m.false > 0).mean())


def test_t_interval_by_hand() -> None:
    # mean 2.5, variance 5/3, standard error .645497, t of 3 degrees of freedom 3.1824
    found = t_interval([1.0, 2.0, 3.0, 4.0])
    assert (found.value, found.n) == (2.5, 4)
    assert (found.low, found.high) == (pytest.approx(0.44574, abs=1e-4), pytest.approx(4.55426, abs=1e-4))


def test_t_interval_of_few() -> None:
    one = t_interval([0.3])
    assert (one.value, one.n) == (0.3, 1) and math.isnan(one.low) and math.isnan(one.high)
    none = t_interval([math.nan])
    assert math.isnan(none.value) and none.n == 0
    assert t_interval([1.0, math.nan, 3.0]) == t_interval([1.0, 3.0])
    assert t_interval([1.0, math.nan, 3.0]).n == 2


def test_quantiles_are_students() -> None:
    stats = pytest.importorskip("scipy.stats")
    for degrees in (1, 2, 7, 15, 16, 17, 30, 200):
        assert t95(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=1e-4)


def test_auroc_is_scikit_learn_s_and_its_interval_that_of_resampled_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(60), 4)
    label = rng.random(240) < 0.5
    # an image's answers hang together; rounding makes ties
    score = np.round(label * 0.6 + rng.normal(size=60)[images] + rng.normal(size=240) * 0.5, 1)
    found = metrics.auroc(score, label, clusters=list(images), n_boot=2000)
    assert found.value == pytest.approx(roc_auc_score(label, score)) and found.n == 240
    drawn = []
    for _ in range(2000):
        rows = np.concatenate([np.flatnonzero(images == k) for k in rng.integers(0, 60, 60)])
        drawn.append(roc_auc_score(label[rows], score[rows]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert (found.low, found.high) == (pytest.approx(low, abs=0.008), pytest.approx(high, abs=0.008))
    # in one go or in parts
    monkeypatch.setattr(metrics, "_CHUNK", 240 * 7)
    assert metrics.auroc(score, label, clusters=list(images), n_boot=2000) == found
    assert metrics.auroc([1, 2, 2], [False, True, False]).value == 0.75


def test_auroc_without_one_of_the_kinds_is_undefined() -> None:
    assert math.isnan(metrics.auroc([0.1, 0.2], [True, True]).value)
    with pytest.raises(ValueError, match="2 scores for"):
        metrics.auroc([0.1, 0.2], [True])
    with pytest.raises(ValueError, match="1 clusters for 2 scores"):
        metrics.auroc([0.1, 0.2], [True, False], clusters=["a"])


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    # by hand from the quadratic (p − x)² = z² x (1 − x) / n, whose roots the ends are
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 1, 0.2065, 1.0), (8, 10, 0.4902, 0.9433)],
)
def test_wilson_interval(hits: int, n: int, low: float, high: float) -> None:
    found = metrics.wilson_interval(hits, n)
    assert (found.value, found.n) == (hits / n, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    for x in {found.low, found.high} - {0.0, 1.0}:
        assert (hits / n - x) ** 2 == pytest.approx(metrics.Z95**2 * x * (1 - x) / n)


def test_wilson_interval_of_nothing() -> None:
    found = metrics.wilson_interval(0, 0)
    assert math.isnan(found.value) and found.as_dict()["low"] is None
