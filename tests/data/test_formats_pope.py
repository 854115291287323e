from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from data.formats import pope
from data.formats.pope import PopeItem
from data.jsonl import DataError, write_rows

ROW = {"question_id": 1, "image": "a.jpg", "text": "Is there a cat in the image?", "label": "yes"}


@pytest.mark.parametrize("split", pope.SPLITS)
def test_the_official_files_round_trip(shared: Path, tmp_path: Path, split: str) -> None:
    source = shared / "data" / "pope" / f"coco_pope_{split}.json"
    items = pope.read(source)
    assert len(items) == 3000 and {item.split for item in items} == {split}
    # 500 images with three questions of each label (SPEC: 3 positives and 3 negatives an image)
    assert Counter(item.label for item in items) == {"yes": 1500, "no": 1500}
    per_image = Counter((item.image, item.label) for item in items)
    assert len(per_image) == 1000 and set(per_image.values()) == {3}
    assert pope.write(tmp_path / "out.json", items) == 3000
    want = [json.loads(line) for line in source.read_text().splitlines()]
    assert [json.loads(line) for line in (tmp_path / "out.json").read_text().splitlines()] == want
    assert pope.read(tmp_path / "out.json")[0].split is None


def test_keys_of_other_distributions_are_kept(tmp_path: Path) -> None:
    write_rows(tmp_path / "random.jsonl", [ROW | {"category": "x"}])
    (item,) = pope.read(tmp_path / "random.jsonl")
    assert item == PopeItem(**ROW, split="random", category="x")
    pope.write(tmp_path / "o.jsonl", [item])
    assert json.loads((tmp_path / "o.jsonl").read_text()) == ROW | {"category": "x"}


@pytest.mark.parametrize(
    ("row", "key"),
    [
        (ROW | {"question_id": 2, "label": "Yes"}, "label"),
        (ROW | {"question_id": 2, "image": "../a.jpg"}, "image"),
        (ROW, "question_id"),
        ({k: v for k, v in ROW.items() if k != "text"}, "text"),
    ],
)
def test_a_bad_question_stops_the_benchmark(tmp_path: Path, row: dict[str, object], key: str) -> None:
    rows = [ROW] + [ROW | {"question_id": n} for n in range(1000, 2000)]
    write_rows(tmp_path / "a.jsonl", [*rows, row])
    with pytest.raises(DataError) as caught:
        pope.read(tmp_path / "a.jsonl")
    assert (caught.value.line, caught.value.key) == (1002, key)
    assert len(pope.read(tmp_path / "a.jsonl", strict=False)) == 1001
