from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from align.pairs import (
    Share,
    by_length,
    ceiling,
    check_facts,
    hold_out,
    independent,
    pairs_of,
    picture_source,
    report,
    wilson,
)
from data.jsonl import DataError
from data.schema import Facts, Image, Message, Preference, Response


def preference(name: str, texts: list[str], choices: dict[str, int | None], **more: Any) -> Preference:
    return Preference(
        id=name,
        messages=[Message(role="user", content="What?")],
        responses=[Response(text=text) for text in texts],
        choices=choices,
        **more,
    )


def test_pairs_skip_and_count_ties_and_equal_texts():
    records = [
        preference("a", ["x", "y"], {"hallucination": 1}),
        preference("b", ["x", "y"], {"hallucination": None}),
        preference("c", ["x", "x"], {"hallucination": 0}),
        preference("d", ["x", "y", "z"], {"hallucination": 2}),
    ]
    pairs, skipped = pairs_of(records, "preferred")
    assert [(p.id, p.chosen, p.rejected) for p in pairs] == [
        ("a", "y", "x"),
        ("d", "z", "x"),
        ("d", "z", "y"),
    ]
    assert skipped == {"ties": 1, "identical": 1}


def test_target_chooses_the_question():
    records = [
        preference("a", ["x", "y"], {"hallucination": None, "helpfulness": 0}),
        preference("b", ["x", "y"], {"hallucination": 1, "helpfulness": 0}),
    ]
    chosen = {
        t: [p.chosen for p in pairs_of(records, t)[0]] for t in ("preferred", "hallucination", "helpfulness")
    }
    assert chosen == {"preferred": ["x", "y"], "hallucination": ["y"], "helpfulness": ["x", "x"]}


def test_target_faults():
    record = preference("a", ["x", "y"], {"helpfulness": None})
    with pytest.raises(DataError, match=r"no record answers 'style'; choose from preferred, helpfulness"):
        pairs_of([record], "style")
    with pytest.raises(DataError, match="all 1 preferences are ties"):
        pairs_of([record], "helpfulness")


def test_hold_out_keeps_an_image_on_one_side():
    records = [
        preference(f"{i}-{j}", ["x", "y"], {"overall": 0}, image=Image(id=str(i), path=f"{i}.png"))
        for i in range(10)
        for j in range(3)
    ]
    pairs, _ = pairs_of(records, "preferred")
    train, held = hold_out(pairs, 7, seed=0)
    assert len(held) == 9
    assert len(train) == 21
    assert not {p.image.id for p in train if p.image} & {p.image.id for p in held if p.image}
    assert hold_out(pairs, 7, seed=0) == (train, held)
    assert hold_out(pairs, 7, seed=1)[1] != held
    assert hold_out(pairs, 0, seed=0) == (pairs, [])


@pytest.mark.parametrize("source", ["data", "path", "url"])
def test_a_picture_with_several_ids_is_one(source: str):
    """Rows that bring bytes and no path are named by their row; one picture in five rows is five ids."""
    where = {"data": lambda i: f"bytes {i}".encode(), "path": "{}.png".format, "url": "http://x/{}".format}
    records = [
        preference(
            f"{i}-{j}", ["x", "y"], {"overall": 0}, image=Image(id=f"row-{5 * i + j}", **{source: of(i)})
        )
        for of in [where[source]]
        for i in range(8)
        for j in range(5)
    ]
    train, held = hold_out(pairs_of(records, "preferred")[0], 7, seed=0)
    assert (len(train), len(held)) == (30, 10)
    assert not {p.id[0] for p in train} & {p.id[0] for p in held}
    assert len({p.cluster for p in train}) == 6


def test_where_a_picture_comes_from():
    assert picture_source(None) is None
    assert picture_source(Image(id="a", path="x.png")) == "x.png"
    assert picture_source(Image(id="a", url="http://x/y.png")) == "http://x/y.png"
    # sha256sum of three bytes
    told = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert picture_source(Image(id="a", data=b"abc")) == picture_source(Image(id="b", data=b"abc")) == told


def test_hold_out_of_too_much():
    pairs, _ = pairs_of([preference(str(i), ["x", "y"], {"overall": 0}) for i in range(10)], "preferred")
    with pytest.raises(DataError, match=r"holdout: holding out 500 .* of 10 pairs leaves too few; lower it"):
        hold_out(pairs, 500, seed=0)


def test_missing_facts_are_named_with_the_mend():
    good = preference("good", ["x", "y"], {"overall": 0}, facts=Facts(rationales=["r"]))
    bad = [preference(f"bad{i}", ["x", "y"], {"overall": 0}, facts=Facts(answer="A")) for i in range(7)]
    check_facts([good, *bad], [])
    check_facts([good], ["captions", "rationales"])
    with pytest.raises(
        DataError, match=r"f\.jsonl: facts: .*7 records have none: bad0, .*bad4 and 2 more; add"
    ):
        check_facts([good, *bad], ["captions", "rationales"], "f.jsonl")


def test_report_by_hand():
    chosen, rejected = [1.0, 0.0, 2.0, 3.0], [0.0, 1.0, 2.0, 1.0]
    found = report(chosen, rejected, [5, 9, 4, 7], [5, 2, 6, 20])
    assert found.n == 4
    assert found.accuracy == (1 + 0 + 0.5 + 1) / 4
    losses = [math.log1p(math.exp(-1)), math.log1p(math.exp(1)), math.log(2), math.log1p(math.exp(-2))]
    assert found.loss == pytest.approx(sum(losses) / 4)
    # lengths differ by 0, 7, −2, −13: the first and the third pair count as equally long
    assert (found.equal_length_accuracy, found.equal_length_n) == (0.75, 2)
    assert found.shorter_accuracy == (0.5 + 0 + 1 + 1) / 4
    expected = np.corrcoef(chosen + rejected, [5, 9, 4, 7, 5, 2, 6, 20])[0, 1]
    assert found.length_correlation == pytest.approx(expected)


def test_report_without_variation():
    found = report([0.0], [0.0], [1], [9])
    assert found.accuracy == 0.5
    assert math.isnan(found.length_correlation)
    assert math.isnan(found.equal_length_accuracy)
    with pytest.raises(ValueError, match="no pairs"):
        report([], [], [], [])


def test_repeats_do_not_count_as_independent():
    """Five annotators of each of 100 pictures' pairs tell as much as one, if they agree."""
    once = np.arange(100) % 10 < 7
    margins, pictures = np.repeat(2.0 * once - 1, 5), np.repeat(np.arange(100), 5).tolist()
    tokens = [9] * 500
    alone = report(margins.tolist(), [0.0] * 500, tokens, tokens)
    found = report(margins.tolist(), [0.0] * 500, tokens, tokens, pictures)
    assert (alone.low, alone.high) == pytest.approx(wilson(350, 500))
    assert (found.low, found.high) == pytest.approx(wilson(70, 100))
    assert (found.accuracy, found.n) == (pytest.approx(0.7), 500)
    bins = by_length(margins.tolist(), [0.0] * 500, tokens, tokens, pictures)
    assert bins["all"] == bins["equal"] == Share(found.accuracy, found.low, found.high, 500)


def test_what_scores_can_reach_at_most():
    assert ceiling(0.69) == pytest.approx(0.8082, abs=1e-4)
    assert (ceiling(1), ceiling(0.5), ceiling(0.4)) == (1, 0.5, 0.5)
    rng = np.random.default_rng(0)
    for few in range(1, 6):
        p = rng.random(few)
        agreement, best = float((p**2 + (1 - p) ** 2).mean()), float(np.maximum(p, 1 - p).mean())
        # more than the annotators' own agreement is to be had, and the bound is met where all are alike
        assert agreement < best <= ceiling(agreement) + 1e-12
        assert (best == pytest.approx(ceiling(agreement))) is (few == 1)


def test_how_many_are_independent():
    right = np.array([1, 0, 1, 1, 0, 1, 0, 1])
    assert independent(right) == independent(right, list("abcdefgh")) == 8
    # two and two of four pictures: sums less their share (5/8 of 2) are −¼, ¾, −¼, −¼
    assert independent(right, list("aabbccdd")) == 8  # spread more evenly than chance would have it
    right = np.array([1, 1, 1, 1, 0, 0, 0, 1])
    # sums less their share: ¾, ¾, −5/4, −¼; their squares over 8 · 5/8 · 3/8
    effect = (9 / 16 + 9 / 16 + 25 / 16 + 1 / 16) / (15 / 8)
    assert independent(right, list("aabbccdd")) == pytest.approx(8 / effect)
    # of one picture, or all alike: the pictures count
    assert independent(right, ["a"] * 8) == 1
    assert independent(np.ones(8), list("aabbccdd")) == independent(np.zeros(8), list("aabbccdd")) == 4


@pytest.mark.parametrize(("right", "n"), [(15, 50), (325, 500), (1, 7)])
def test_wilson_ends_are_where_the_score_test_is_just_passed(right: int, n: int):
    for end in wilson(right, n):
        distance = abs(right / n - end) / math.sqrt(end * (1 - end) / n)
        assert distance == pytest.approx(1.959964)


def test_wilson_at_the_borders():
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == pytest.approx(1)
    assert wilson(10, 10)[1] <= 1
