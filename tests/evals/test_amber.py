from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.formats.amber import AmberItem, AmberWords, read
from data.jsonl import DataError
from evals.amber import AmberBenchmark, named, read_benchmark, said_official
from evals.nouns import WordFinder

WORDS = AmberWords(
    relation={
        "person": ["man", "woman"], "cup": ["mug"], "dog": ["puppy"], "light": ["lamp"],
        "table": [], "sky": [],
    },
    safe=["light"],
)  # fmt: skip


def _described(number: int, objects: list[str], tempting: list[str]) -> AmberItem:
    return AmberItem(
        id=number, image=f"{number}.jpg", query="Describe this image.", type="generative",
        objects=objects, tempting=tempting,
    )  # fmt: skip


def _asked(number: int, kind: str, label: str) -> AmberItem:
    return AmberItem.model_validate(
        {"id": number, "image": "1.jpg", "query": "Is it?", "type": kind, "label": label}
    )


class Near(WordFinder):
    """Knows that a puppy is near a dog's friend, the cat of no list: for the rule of similarity."""

    def similarity(self, a: str, b: str) -> float:
        return 0.9 if {a, b} == {"mug", "table"} else super().similarity(a, b)


def test_a_description_is_read_by_the_official_order() -> None:
    item = _described(1, ["person", "cup"], ["dog", "table"])
    same = WordFinder(WORDS.known).similarity
    got = named(
        ["man", "lamp", "light", "puppy", "tree", "person"], item, WORDS, lambda a, b: same(a, b) > 0.8
    )
    # "tree" is no word of the vocabulary; "light" is never counted as false, "lamp" is no safe word
    assert got.nouns == ("man", "lamp", "light", "puppy", "person")
    assert got.false == ("lamp", "puppy")
    # both names of the person cover one of two objects; the puppy is the dog, one of two tempting things
    assert (got.covered, got.present, got.tempted, got.tempting) == (1, 2, 1, 2)


def test_a_near_word_is_true_and_a_tempting_thing_at_once() -> None:
    item = _described(1, ["table"], ["cup"])
    near = Near(WORDS.known)
    got = named(["mug"], item, WORDS, lambda a, b: near.similarity(a, b) > 0.8)
    assert got.false == () and got.covered == 1 and got.tempted == 1


def test_generative_figures_by_hand() -> None:
    items = (_described(1, ["person", "cup"], ["dog"]), _described(2, ["sky"], ["table"]))
    bench = AmberBenchmark(items, WORDS, WordFinder(WORDS.known), n_boot=50)
    got = bench.score({"1": "A man with two puppies.", "2": "The Sky over a table"}).result["generative"]
    # 1: man true, puppy false; 2: table false and tempting; "Sky" has a capital, which only strict overlooks
    official, strict = got["official"], got["strict"]
    assert official["chair"]["value"] == round(2 / 3.001 * 100, 1)
    assert official["cover"]["value"] == round(1 / 3.001 * 100, 1)
    assert official["hal"]["value"] == 100.0
    assert official["cog"]["value"] == round(2 / 2.001 * 100, 1)
    assert strict["chair"]["value"] == pytest.approx(50.0)
    assert strict["cover"]["value"] == pytest.approx(200 / 3)


def test_discriminative_figures_by_hand() -> None:
    labels = ["no", "no", "yes", "yes"]
    items = tuple(_asked(i + 1, "existence", label) for i, label in enumerate(labels))
    bench = AmberBenchmark(items, WORDS, WordFinder(WORDS.known), n_boot=50)
    got = bench.score({"1": "No", "2": "No.", "3": "No", "4": "Yes"}).result["discriminative"]
    official = got["official"]["existence"]
    # "No." is no answer to the official rule: right 2 of 4; "no" said twice, once rightly, of two
    precision = recall = round(1 / 2.001 * 100, 1)
    assert official["accuracy"]["value"] == round(2 / 4.001 * 100, 1)
    assert (official["precision"]["value"], official["recall"]["value"]) == (precision, recall)
    p = precision / 100
    assert official["f1"]["value"] == round(2 * p * p / (p + p + 0.001) * 100, 1)
    strict = got["strict"]["existence"]
    assert strict["accuracy"]["value"] == 75.0
    assert strict["precision"]["value"] == pytest.approx(200 / 3) and strict["recall"]["value"] == 100.0
    assert (got["official"]["unparsed"], got["strict"]["unparsed"]) == (1, 0)


def test_the_constant_counts_once_in_all_and_thrice_in_attribute() -> None:
    items = tuple(_asked(i + 1, kind, "no") for i, kind in enumerate(("state", "number", "action")))
    bench = AmberBenchmark(items, WORDS, WordFinder(WORDS.known), n_boot=10)
    got = bench.score({"1": "No", "2": "No", "3": "Yes"}).result["discriminative"]["official"]
    assert got["all"]["accuracy"]["value"] == round(2 / 3.001 * 100, 1)
    assert got["attribute"]["accuracy"]["value"] == round(2 / 3.003 * 100, 1)
    # nobody asked about existence, so nothing stands there
    assert "existence" not in got


@pytest.mark.parametrize(
    ("text", "answer"), [("Yes", "yes"), ("No", "no"), ("yes", None), ("No.", None), ("", None)]
)
def test_only_the_bare_words_are_official_answers(text: str, answer: str | None) -> None:
    assert said_official(text) == answer


def test_two_models_are_compared_on_the_same_questions() -> None:
    items = (_described(1, ["cup"], []), *(_asked(i + 2, "state", "no") for i in range(6)))
    bench = AmberBenchmark(items, WORDS, WordFinder(WORDS.known), n_boot=50)
    good = {"1": "a cup"} | {str(i + 2): "No" for i in range(6)}
    bad = {"1": "a dog"} | {str(i + 2): "Yes" for i in range(6)}
    got = bench.compare(good, bad, "strict")
    assert got["hal"]["value"] == pytest.approx(-100)
    assert got["state"]["accuracy"]["value"] == pytest.approx(100)
    assert got["mcnemar"] == {"only_a": 6, "only_b": 0, "p": 2 / 2**6}


def test_a_question_without_annotation_is_named(tmp_path: Path) -> None:
    queries, notes = tmp_path / "q.json", tmp_path / "a.json"
    queries.write_text(json.dumps([{"id": 1, "image": "1.jpg", "query": "?"}]))
    notes.write_text(json.dumps([{"id": 2, "type": "generative", "truth": [], "hallu": []}]))
    with pytest.raises(DataError, match="question 1 has no annotation"):
        read(queries, notes)
    notes.write_text(json.dumps([{"id": 1, "type": "descriptive", "truth": [], "hallu": []}]))
    with pytest.raises(DataError, match="unknown type 'descriptive'"):
        read(queries, notes)


def test_the_real_files_run_from_answers(shared: Path) -> None:
    folder = shared / "data" / "amber"
    rest = (folder / "annotations.json", folder / "relation.json", folder / "safe_words.txt")
    bench = read_benchmark([folder / "query_generative.json"], *rest, nouns="words", n_boot=20)
    assert len(bench.items) == 1004
    # a model that names exactly what is there, and one that names exactly what tempts
    perfect = {str(q.id): " and ".join(q.objects) for q in bench.questions}
    got = bench.score(perfect).result["generative"]["official"]
    assert got["chair"]["value"] == 0.0 and got["hal"]["value"] == 0.0
    tempted = {str(q.id): " and ".join(q.tempting) for q in bench.questions}
    got = bench.score(tempted).result["generative"]["official"]
    # some words that tempt also mean something that is there, so not all of it is false
    assert got["cog"]["value"] > 85.0 and got["hal"]["value"] > 85.0
    asked = read_benchmark([folder / "query_discriminative.json"], *rest, nouns="words", n_boot=20)
    assert len(asked.items) == 14216
    right = {str(q.id): "Yes" if q.label == "yes" else "No" for q in asked.questions}
    got = asked.score(right).result["discriminative"]
    assert all(got["official"][group]["accuracy"]["value"] == 100.0 for group in ("all", "relation"))
    assert got["strict"]["all"]["f1"]["value"] == 100.0
