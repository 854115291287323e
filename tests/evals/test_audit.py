"""The figures of an audit by hand: shifts, shares, spreads, correlations, orders."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from evals.audit import figures
from evals.metrics import mean_interval


def row(name: str, response: int, score: float, tokens: int = 5, **more: Any) -> dict[str, Any]:
    made = {"id": name, "response": response, "picture": f"image of {name}", "score": score, "tokens": tokens}
    return made | {"changes": {}, "orders": []} | more


def change(**scores: float) -> dict[str, Any]:
    return {name: {"score": score, "tokens": 8} for name, score in scores.items()}


def test_shifts_by_hand() -> None:
    rows = [
        row("a", 0, 0.0, changes=change(one=-1.0, two=0.0)),
        row("a", 1, 2.0, changes=change(one=2.0, two=3.0)),
        row("b", 0, 4.0, changes=change(one=4.5)),
        row("b", 1, 2.0, tokens=1),
    ]
    found = figures(rows, {"one less two": ("one", "two"), "one less none": ("one", "none")})
    spread = math.sqrt(2)  # of 0, 2, 4, 2
    assert found["n"] == {"responses": 4, "conversations": 2, "images": 2}
    assert found["spread"]["value"] == pytest.approx(spread)
    one = found["changes"]["one"]
    # −1, 0 and +0.5; the fourth response has no such change
    assert one["n"] == one["mean"]["n"] == 3
    assert one["mean"]["value"] == pytest.approx(-0.5 / 3) and one["size"]["value"] == pytest.approx(0.5)
    assert one["relative"]["value"] == pytest.approx(-0.5 / 3 / spread)
    assert one["relative_size"]["value"] == pytest.approx(0.5 / spread)
    assert one["falls"]["value"] == one["rises"]["value"] == pytest.approx(1 / 3)
    assert one["tokens"] == 3.0
    assert found["changes"]["two"]["mean"]["value"] == 0.5 and found["changes"]["two"]["n"] == 2
    assert found["contrasts"].keys() == {"one less two"}
    assert found["contrasts"]["one less two"]["mean"]["value"] == -1.0  # −1 and −1
    assert found["contrasts"]["one less two"]["tokens"] == 0.0
    assert found["orders"] is None


def test_a_change_may_have_a_score_of_its_own_to_be_compared_with() -> None:
    told = {"score": 3.0, "tokens": 8}
    rows = [
        row("a", 0, 0.0, changes={"x": told | {"against": 2.0}, "y": told | {"score": 2.5, "against": 2.0}}),
        row("b", 0, 4.0, changes={"x": told}),
    ]
    found = figures(rows, {"x less y": ("x", "y")})
    assert found["changes"]["x"]["mean"]["value"] == (1 - 1) / 2
    assert (found["changes"]["x"]["size"]["value"], found["changes"]["y"]["mean"]["value"]) == (1, 0.5)
    assert found["contrasts"]["x less y"]["mean"]["value"] == 0.5
    assert found["spread"]["value"] == 2  # of the scores as they were


def test_a_move_within_rounding_is_none() -> None:
    scores = [0.0, 10.0] * 4  # a spread of 5: moves count from 0.05 on
    moves = [0.04, -0.04, 0.06, -0.06, 0.0, 0.0, 0.0, 1.0]
    rows = [row(f"{i}", 0, s, changes=change(x=s + m)) for i, (s, m) in enumerate(zip(scores, moves))]
    x = figures(rows, {})["changes"]["x"]
    assert (x["rises"]["value"], x["falls"]["value"]) == (0.25, 0.125)


def test_intervals_are_of_images_and_seeded() -> None:
    rng = np.random.default_rng(0)
    scores, moves = rng.normal(size=(2, 40))
    # four responses an image, moved alike: ten independent moves, not forty
    moves[:] = np.repeat(moves[:10], 4)
    rows = [
        row(f"{i // 4}", i % 4, s, changes=change(x=s + m)) for i, (s, m) in enumerate(zip(scores, moves))
    ]
    x = figures(rows, {}, seed=3)["changes"]["x"]
    alone = mean_interval(moves, clusters=[i // 4 for i in range(40)], seed=3)
    assert [x["mean"][k] for k in ("value", "low", "high")] == pytest.approx(
        [alone.value, alone.low, alone.high]
    )
    naive = mean_interval(moves, seed=3)
    assert x["mean"]["high"] - x["mean"]["low"] > 1.5 * (naive.high - naive.low)
    assert figures(rows, {}, seed=3) == figures(rows, {}, seed=3) != figures(rows, {}, seed=4)


def test_conversations_about_one_picture_are_not_independent() -> None:
    """Five conversations a picture, each with an id of its own for it, as rows of bytes have."""
    rng = np.random.default_rng(0)
    scores, moves = rng.normal(size=50), np.repeat(rng.normal(size=10), 5)
    rows = [
        row(f"{i}", 0, s, changes=change(x=s + m), image=f"row-{i}", picture=f"sha256:{i // 5}")
        for i, (s, m) in enumerate(zip(scores, moves))
    ]
    found = figures(rows, {}, seed=3)
    alone = mean_interval(moves, clusters=[i // 5 for i in range(50)], seed=3)
    mean = found["changes"]["x"]["mean"]
    assert (mean["low"], mean["high"]) == pytest.approx((alone.low, alone.high))
    assert found["n"]["images"] == 10


def test_the_spread_is_drawn_anew() -> None:
    """A shift of one for all has no error of its own; its size in spreads has the spread's."""
    rng = np.random.default_rng(1)
    rows = [row(f"{i}", 0, s, changes=change(x=s + 1)) for i, s in enumerate(rng.normal(size=30))]
    found = figures(rows, {})
    x, spread = found["changes"]["x"], found["spread"]
    assert x["mean"]["low"] == pytest.approx(1) and x["mean"]["high"] == pytest.approx(1)
    # but for the percentiles of reciprocals, which interpolate otherwise
    assert x["relative"]["low"] == pytest.approx(1 / spread["high"], rel=1e-4)
    assert x["relative"]["high"] == pytest.approx(1 / spread["low"], rel=1e-4)


def test_length_over_all_and_within_conversations() -> None:
    scores, tokens = [1.0, 2.0, 9.0, 7.0, 5.0], [10, 12, 30, 33, 20]
    rows = [row("aabbc"[i], i, s, t) for i, (s, t) in enumerate(zip(scores, tokens))]
    found = figures(rows, {})["length"]
    assert found["correlation"]["value"] == pytest.approx(np.corrcoef(scores, tokens)[0, 1])
    # in a the longer is scored higher by 1, in b lower by 2: (1 − 3) of deviations (±½, ±1 | ±1, ±1½)
    x, y = [-0.5, 0.5, 1, -1, 0], [-1, 1, -1.5, 1.5, 0]
    assert found["within"]["value"] == pytest.approx(np.dot(x, y) / math.sqrt(np.dot(x, x) * np.dot(y, y)))
    assert found["within"]["n"] == 4 and found["tokens"] == 21.0
    alone = figures([row(name, 0, 1.0, 3) for name in "ab"], {})
    assert alone["length"]["within"]["value"] is None and alone["length"]["correlation"]["value"] is None


def test_orders_by_hand() -> None:
    rows = [
        row("a", 0, 0.0, orders=[0.0, 1.0, 2.0]),
        row("a", 1, 1.0, orders=[1.0, 1.0, 1.0]),  # behind, equal, ahead: changes sides
        row("b", 0, 5.0, orders=[5.0, 5.0, 5.0]),
        row("b", 1, 2.0, orders=[2.0, 3.0, 4.0]),  # never ahead
        row("c", 0, 2.0, orders=[2.0, 2.0, 2.0]),
    ]
    found = figures(rows, {})["orders"]
    assert found["orders"] == 3
    assert found["sd"]["value"] == pytest.approx((1 + 0 + 0 + 1 + 0) / 5)
    assert found["relative"]["value"] == pytest.approx(0.4 / np.std([0, 1, 5, 2, 2]))
    assert found["changed"]["value"] == 0.5 and found["changed"]["n"] == 2


def test_equal_scores_have_no_spread_to_measure_by() -> None:
    found = figures([row(name, 0, 1.0, changes=change(x=1.0)) for name in "abc"], {})
    assert found["spread"]["value"] == 0.0
    assert (
        found["changes"]["x"]["mean"]["value"] == 0.0 and found["changes"]["x"]["relative"]["value"] is None
    )


def test_no_rows() -> None:
    with pytest.raises(ValueError, match="give at least one"):
        figures([], {})
