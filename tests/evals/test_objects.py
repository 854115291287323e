from __future__ import annotations

import re

import pytest

from data.jsonl import DataError
from data.schema import Image
from evals.objects import ObjectBenchmark, describe, false_spans
from evals.runner import EvalItem

_NAMES = re.compile(r"hot dog|dining table|dogs?|cat|cup|table")


def mentions(text: str) -> list[str]:
    """A vocabulary with a name of two words, one word inside another name, and a plural."""
    return ["dog" if name == "dogs" else name for name in _NAMES.findall(text.lower())]


def _bench(truth: list[set[str]]) -> ObjectBenchmark:
    items = tuple(
        EvalItem(f"d{i}", Image(id=f"i{i}", path=f"{i}.png"), "Describe.") for i in range(len(truth))
    )
    return ObjectBenchmark(items, {f"i{i}": t for i, t in enumerate(truth)}, mentions, n_boot=100)


def test_describe_counts_repeats_and_distinct_true_objects() -> None:
    got = describe("x", "A cat, a dog and a cat. A dog!", {"cat", "cup"}, mentions)
    assert got.named == ("cat", "dog", "cat", "dog") and got.false == ("dog", "dog")
    assert (got.found, got.present, got.repeats, got.words) == (1, 2, 2, 9)


def test_figures_by_hand() -> None:
    bench = _bench([{"cat", "cup"}, {"dog"}, set()])
    scored = bench.score({"d0": "a cat and a dog, a dog", "d1": "a dog", "d2": "nothing here"})
    got = scored.result
    want = {
        "hallucination_rate": 1 / 3,
        "chair_i": 2 / 4,
        "recall": 2 / 3,
        "repeats": 1 / 3,
        "words": 11 / 3,
        "mentions": 4 / 3,
    }
    assert {name: got[name]["value"] for name in want} == pytest.approx(want)
    assert got["images"] == ["i0", "i1", "i2"] and got["n"] == 3
    assert [v.label for v in scored.verdicts] == ["hallucination", "none", "none"]
    assert scored.verdicts[0].meta == {"named": ["cat", "dog", "dog"], "false": ["dog", "dog"]}


def test_silence_has_no_chair_and_no_recall() -> None:
    got = _bench([{"cat"}]).score({"d0": ""}).result
    assert (
        got["chair_i"]["value"] is None
        and got["recall"]["value"] == 0
        and got["hallucination_rate"]["value"] == 0
    )


def test_data_hash_follows_the_truth() -> None:
    answers = {"d0": "a cat"}
    one, other = (_bench([t]).score(answers).result["sha256"] for t in ({"cat"}, {"cup"}))
    assert one != other


def test_compare_is_paired_and_matched() -> None:
    bench = _bench([{"cat", "cup"}] * 6)
    a = {f"d{i}": "a cat" for i in range(6)}
    b = {f"d{i}": "a cat and a dog" if i < 3 else "a cat and a cup" for i in range(6)}
    got = bench.compare(a, b)
    assert got["differences"]["hallucination_rate"]["value"] == pytest.approx(-0.5)
    assert got["differences"]["recall"]["value"] == pytest.approx(0.5 - 0.75)
    assert got["mcnemar"] == {"only_a": 3, "only_b": 0, "p": pytest.approx(0.25)}
    # only where both name one of the two objects: a never errs there, b always
    matched = got["matched_recall"]
    assert matched["hallucination_rate"]["difference"]["value"] == -1 and matched["recall"] == pytest.approx(
        0.5
    )
    assert (matched["share_a"], matched["share_b"], matched["strata"]) == (1, 0.5, 1)


@pytest.mark.parametrize(
    ("text", "truth", "want"),
    [
        ("A cat and a Dog.", {"cat"}, ["Dog"]),
        ("Two dogs, one dog", set(), ["dogs", "dog"]),
        ("a dining table and a table", {"table"}, ["dining table"]),
        ("a hot dog near a dog", {"dog"}, ["hot dog"]),
        ("a cat", {"cat"}, []),
        ("", set(), []),
    ],
)
def test_false_spans(text: str, truth: set[str], want: list[str]) -> None:
    assert [text[s:e] for s, e in false_spans(text, truth, mentions)] == want


def test_false_spans_pass_over_what_is_denied() -> None:
    def claims(text: str) -> list[str]:
        return [] if " no " in f" {text} " else mentions(text)

    assert false_spans("a dog", set(), claims) == [(2, 5)]
    assert false_spans("there is no dog", set(), claims) == []


def test_unknown_images_and_missing_responses() -> None:
    item = EvalItem("x", Image(id="i", path="i.png"), "?")
    with pytest.raises(DataError, match="no objects are known for 1 images"):
        ObjectBenchmark((item,), {}, mentions)
    with pytest.raises(DataError, match="missing"):
        _bench([{"cat"}, {"cup"}]).score({"d0": ""})
