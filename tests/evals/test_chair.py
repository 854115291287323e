from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.jsonl import DataError
from data.schema import Image
from evals.chair import (
    COCO,
    CocoImage,
    benchmark_of,
    boxes_truth,
    built_in,
    coco_truth,
    read_vocabulary,
    vocabulary,
)
from evals.objects import ObjectBenchmark
from evals.runner import EvalItem


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Two hot dogs and a dog.", ["hot dog", "dog"]),
        ("A baby elephant and an adult bear beside a baby.", ["elephant", "bear", "person"]),
        ("A passenger train, a passenger.", ["train", "person"]),
        ("Train tracks near home plate", []),
        ("wine glasses on the dining tables", ["wine glass", "dining table"]),
        ("Knives, buses and benches", ["knife", "bus", "bench"]),
        ("The seat of the toilet beside a stool", ["toilet", "chair"]),
        ("A toilet seat", ["toilet"]),
        ("A seat", ["chair"]),
        ("A man in a bow tie; a teddy bear", ["person", "tie", "teddy bear"]),
        ("", []),
    ],
)
def test_the_official_rules_of_words(text: str, named: list[str]) -> None:
    assert built_in().mentions(text) == named


def test_every_category_names_itself_in_singular_and_plural() -> None:
    words = built_in()
    for name in COCO:
        assert words.mentions(f"There is a {name} here.") == [name]
    assert words.mentions("dogs cats chairs couches") == ["dog", "cat", "chair", "couch"]


def test_figures_by_hand() -> None:
    words = built_in()
    items = tuple(EvalItem(str(i), Image(id=f"{i}.jpg", path=f"{i}.jpg"), "Describe.") for i in range(2))
    truth = {"0.jpg": {"dog", "person"}, "1.jpg": {"cup"}}
    bench = ObjectBenchmark(items, truth, words.mentions, name="chair", vocabulary=words.name, n_boot=50)
    got = bench.score({"0": "A man with a puppy and a frisbee.", "1": "A mug and another mug."}).result
    # five mentions, the frisbee false; one of two descriptions holds it; three objects, all named
    assert got["chair_i"]["value"] == pytest.approx(1 / 5)
    assert got["hallucination_rate"]["value"] == 0.5
    assert got["recall"]["value"] == 1.0
    assert got["images"] == ["0.jpg", "1.jpg"]


def test_a_list_of_synonyms_replaces_the_built_in_one(tmp_path: Path) -> None:
    path = tmp_path / "synonyms.txt"
    path.write_text("person, man, woman\ndog, puppy\n\n")
    words = read_vocabulary(path)
    assert words.mentions("A puppy, a man and a kitten") == ["dog", "person"]
    assert words.name.startswith("synonyms.txt ")
    path.write_text("\n")
    with pytest.raises(DataError, match="no synonyms"):
        read_vocabulary(path)
    path.write_bytes(b"dog, \xff\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_vocabulary(path)


def test_truth_is_boxes_and_captions(tmp_path: Path) -> None:
    instances, captions = tmp_path / "instances.json", tmp_path / "captions.json"
    whole = {
        "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 8, "file_name": "8.jpg"}],
        "annotations": [{"image_id": 7, "category_id": 1}],
        "categories": [{"id": 1, "name": "dog"}],
    }
    instances.write_text(json.dumps(whole))
    captions.write_text(json.dumps({"annotations": [{"image_id": 7, "caption": "A woman with her pup."}]}))
    truth = coco_truth(instances, captions, built_in())
    assert truth == {
        "7": CocoImage("7.jpg", frozenset({"dog", "person"})),
        "8": CocoImage("8.jpg", frozenset()),
    }
    assert coco_truth(instances, None, built_in())["7"].objects == frozenset({"dog"})
    bench = benchmark_of(truth, built_in(), ["8"], n_boot=10)
    assert [(item.id, item.image.path) for item in bench.items] == [("8", "8.jpg")]
    with pytest.raises(DataError, match="1 images have no annotation"):
        benchmark_of(truth, built_in(), ["9"])
    with pytest.raises(DataError, match=r"the vocabulary \(few\) has no 'dog'"):
        coco_truth(instances, None, vocabulary([["cat"]], "few"))
    captions.write_text("{}")
    with pytest.raises(DataError, match="not a COCO annotation file"):
        coco_truth(instances, captions, built_in())


def test_real_captions_name_what_their_boxes_hold(shared: Path) -> None:
    """Five people wrote each image's captions, so most mentions of a right reader are in the boxes."""
    words = built_in()
    path = shared / "data" / "llava_bench" / "caps_boxes_coco2014_val_80.jsonl"
    truth = boxes_truth(path, words)
    assert len(truth) == 80 and truth["296284"].objects == {"donut"}
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    held = told = 0
    for row in rows:
        boxes = {box["category"] for box in row["instances"]}
        for name in words.mentions(" . ".join(row["captions"])):
            told += 1
            held += name in boxes
    assert told > 400 and held / told > 0.85
