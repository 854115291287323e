from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.formats.pope import PopeItem
from data.jsonl import DataError
from evals.pope import PopeBenchmark, PopeSplit, read_split, split_of


def _split(name: str, labels: str, per_image: int = 2) -> PopeSplit:
    items = [
        PopeItem(question_id=i + 1, image=f"{i // per_image}.jpg", text=f"Is there a {i}?", label=label)
        for i, label in enumerate({"y": "yes", "n": "no"}[c] for c in labels)
    ]
    return split_of(name, items)


def _answers(split: PopeSplit, texts: list[str]) -> dict[str, str]:
    return {f"{split.name}/{i + 1}": text for i, text in enumerate(texts)}


def test_figures_by_hand_under_both_rules() -> None:
    split = _split("random", "yynnn")
    bench = PopeBenchmark((split,), n_boot=100)
    scored = bench.score(_answers(split, ["Yes", "no", "NO", "No", "maybe"]))
    got = scored.result["splits"]["random"]
    # official: yes no yes no yes -> tp 1, fn 1, fp 2
    official = got["official"]
    assert official["counts"] == {"tp": 1, "fp": 2, "fn": 1, "unparsed": 0}
    assert official["accuracy"]["value"] == pytest.approx(2 / 5)
    assert official["precision"]["value"] == pytest.approx(1 / 3)
    assert official["recall"]["value"] == pytest.approx(1 / 2)
    assert official["f1"]["value"] == pytest.approx(2 / 5)
    assert official["yes_ratio"]["value"] == pytest.approx(3 / 5)
    assert official["labels_yes_ratio"] == pytest.approx(2 / 5)
    # strict: yes no no no - -> tp 1, fn 1, fp 0; the unparsed answer is wrong
    strict = got["strict"]
    assert strict["counts"] == {"tp": 1, "fp": 0, "fn": 1, "unparsed": 1}
    assert strict["accuracy"]["value"] == pytest.approx(3 / 5)
    assert strict["f1"]["value"] == pytest.approx(2 / 3)
    assert strict["yes_ratio"]["value"] == pytest.approx(1 / 5)
    assert (got["n"], got["images"], len(got["sha256"])) == (5, 3, 64)
    labels = [v.label for v in scored.verdicts if v.judge == "pope/strict"]
    assert labels == ["yes", "no", "no", "no", "unparsed"]
    assert [v.score for v in scored.verdicts if v.judge == "pope/official"] == [1, 0, 0, 1, 0]


def test_an_unparsed_answer_to_a_present_object_is_a_miss() -> None:
    split = _split("random", "yy")
    strict = (
        PopeBenchmark((split,), n_boot=100)
        .score(_answers(split, ["yes", "hm"]))
        .result["splits"]["random"]["strict"]
    )
    assert strict["recall"]["value"] == pytest.approx(0.5) and strict["counts"]["fn"] == 1


def test_no_yes_gives_f1_zero_and_no_precision() -> None:
    split = _split("random", "yn")
    got = PopeBenchmark((split,), n_boot=100).score(_answers(split, ["no", "no"])).result
    figures = got["splits"]["random"]["official"]
    assert figures["f1"]["value"] == 0 and figures["precision"]["value"] is None
    assert got["overall"]["official"]["f1"]["value"] == 0
    json.dumps(got, allow_nan=False)


def test_overall_f1_is_the_mean_of_splits_not_the_pooled_one() -> None:
    a, b = _split("random", "yyyy"), _split("popular", "yn")
    answers = _answers(a, ["yes"] * 4) | _answers(b, ["no", "yes"])
    got = PopeBenchmark((a, b), n_boot=200).score(answers).result
    assert got["overall"]["official"]["f1"]["value"] == pytest.approx(0.5)  # pooled would be 0.8
    assert got["overall"]["n"] == 6


def test_joined_by_id_not_by_position() -> None:
    split = _split("random", "ynyn")
    answers = _answers(split, ["yes", "no", "yes", "no"])
    turned = dict(reversed(answers.items()))
    bench = PopeBenchmark((split,), n_boot=100)
    assert bench.score(turned).result == bench.score(answers).result
    with pytest.raises(DataError, match=r"missing.*random/2"):
        bench.score({k: v for k, v in answers.items() if k != "random/2"})
    with pytest.raises(DataError, match=r"unknown.*random/9"):
        bench.score(answers | {"random/9": "yes"})


def test_compare_pairs_the_questions() -> None:
    split = _split("random", "yn" * 20)
    right = ["yes", "no"] * 20
    bench = PopeBenchmark((split,), n_boot=200)
    got = bench.compare(_answers(split, right), _answers(split, ["yes"] * 40))
    assert got["f1"]["value"] == pytest.approx(1 - 2 / 3)
    assert got["mcnemar"] == {"only_a": 20, "only_b": 0, "p": pytest.approx(2 / 2**20)}


def test_items_carry_the_image_prefix() -> None:
    item = PopeBenchmark((_split("random", "y"),), prefix="images/").items[0]
    assert (item.id, item.image.id, item.image.path) == ("random/1", "0.jpg", "images/0.jpg")


def test_distinct_split_names_are_required() -> None:
    with pytest.raises(DataError, match="distinct names"):
        PopeBenchmark((_split("random", "y"), _split("random", "n")))
    with pytest.raises(DataError, match="no questions"):
        PopeBenchmark((_split("random", ""),))


def test_the_official_random_file(shared: Path) -> None:
    split = read_split(shared / "data" / "pope" / "coco_pope_random.json")
    assert (split.name, len(split.items)) == ("random", 3000)
    assert split.sha256.startswith("ac25245170b975a5")
    bench = PopeBenchmark((split,), n_boot=100)
    got = bench.score({item.id: "Yes" for item in bench.items}).result["splits"]["random"]
    assert got["images"] == 500
    figures = got["official"]
    assert (figures["f1"]["value"], figures["accuracy"]["value"]) == pytest.approx((2 / 3, 0.5))
    # images, each with three yes and three no, are resampled whole: nothing varies
    assert figures["accuracy"]["low"] == figures["accuracy"]["high"] == pytest.approx(0.5)
