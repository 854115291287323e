from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from data.jsonl import DataError
from data.pope_sampling import question, sample

#: cats stand with dogs, cups with forks, sofas with lamps; chairs are everywhere
HAND = {
    "1.jpg": ["cat", "dog", "chair"],
    "2.jpg": ["cat", "dog", "chair"],
    "3.jpg": ["cup", "fork", "chair"],
    "4.jpg": ["cat", "cup", "fork"],
    "5.jpg": ["sofa", "dog", "chair"],
    "6.jpg": ["sofa", "lamp", "rug"],
    "7.jpg": ["sofa", "lamp", "rug"],
}


def test_negatives_by_hand() -> None:
    rows = sample(HAND, rng=random.Random(0), each=2)

    def absent(split: str, image: str) -> list[str]:
        return [r.text.split()[3] for r in rows[split] if r.image == image and r.label == "no"]

    # by frequency: chair 4, cat, dog and sofa 3, the others 2; ties by name
    assert absent("popular", "3.jpg") == ["cat", "dog"]
    assert absent("popular", "4.jpg") == ["chair", "dog"]
    assert absent("popular", "5.jpg") == ["cat", "cup"]
    # beside the sofa, dog and chair of 5 stand: a cat 4 times, lamp and rug 2, cup and fork 1
    assert absent("adversarial", "5.jpg") == ["cat", "lamp"]
    for split, items in rows.items():
        assert len(items) == 4 * len(HAND), split
        assert [item.label for item in items] == ["yes", "no"] * (2 * len(HAND))
        for item in items:
            assert (item.text.split()[3] in HAND[item.image]) == (item.label == "yes")


def test_the_same_seed_gives_the_same_questions() -> None:
    one, two, other = (sample(HAND, rng=random.Random(s), each=2) for s in (1, 1, 2))
    assert one == two and one["random"] != other["random"]
    assert one["popular"] != one["random"]


def test_images_with_too_few_objects_are_named() -> None:
    with pytest.raises(DataError, match=r"'x.jpg' has 1 objects, and 7 others are known"):
        sample(HAND | {"x.jpg": ["cat"]}, rng=random.Random(0))


def test_the_article_fits() -> None:
    assert question("apple") == "Is there an apple in the image?"
    assert question("cup") == "Is there a cup in the image?"


def test_the_official_questions_have_this_wording_and_balance(shared: Path) -> None:
    path = shared / "data" / "pope" / "coco_pope_adversarial.json"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    images = [row["image"] for row in rows]
    assert {images.count(image) for image in set(images[:60])} == {6}
    named = [row["text"].removesuffix(" in the image?").split(" ", 3)[3] for row in rows]
    assert all(row["text"] == question(name) for row, name in zip(rows, named, strict=True))
