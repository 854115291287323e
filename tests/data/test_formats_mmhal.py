from __future__ import annotations

from pathlib import Path

import pytest

from data.formats import mmhal
from data.formats.mmhal import MmhalItem
from data.jsonl import DataError, read_json, write_json

ROW = {
    "question_type": "attribute",
    "question_topic": "chart",
    "image_id": "ab12",
    "image_src": "https://example.org/ab12.jpg",
    "image_content": ["Person", "Chair"],
    "question": "What colour is the chair?",
    "gt_answer": "It is red.",
    "model_answer": "",
}


def test_template_and_responses_round_trip_in_order(tmp_path: Path) -> None:
    rows = [ROW | {"image_id": str(i), "model_answer": f"é{i}"} for i in range(10)] + [ROW | {"gpt": 3}]
    write_json(tmp_path / "in.json", rows)
    items = mmhal.read(tmp_path / "in.json")
    assert [item.index for item in items] == list(range(11))
    assert mmhal.write(tmp_path / "out.json", items) == 11
    assert read_json(tmp_path / "out.json") == rows


def test_an_unanswered_template_needs_no_answers(tmp_path: Path) -> None:
    row = {k: v for k, v in ROW.items() if k != "model_answer"}
    write_json(tmp_path / "in.json", [row])
    assert mmhal.read(tmp_path / "in.json") == [MmhalItem(**ROW, index=0)]


@pytest.mark.parametrize(
    ("key", "value"), [("image_content", "Person"), ("gt_answer", None), ("question", 1)]
)
def test_no_item_is_dropped_since_its_place_is_its_type(tmp_path: Path, key: str, value: object) -> None:
    write_json(tmp_path / "in.json", [ROW] * 200 + [ROW | {key: value}])
    with pytest.raises(DataError) as caught:
        mmhal.read(tmp_path / "in.json")
    assert (caught.value.index, caught.value.key) == (200, key)
