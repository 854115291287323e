"""Captions for facts from either kind of file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.facts import read_captions
from data.jsonl import DataError


def test_both_kinds_of_file(tmp_path: Path) -> None:
    ours, coco = tmp_path / "image_to_caption.json", tmp_path / "captions_train2017.json"
    wanted = {"000000000001.jpg": ["A dog.", "A brown dog."]}
    ours.write_text(json.dumps(wanted))
    annotations = [
        {"image_id": 1, "id": 5, "caption": "A dog."},
        {"image_id": 1, "id": 6, "caption": "A brown dog.\n"},
    ]
    images = [{"id": 1, "file_name": "000000000001.jpg"}]
    coco.write_text(json.dumps({"info": {}, "annotations": annotations, "images": images}))
    assert read_captions(ours) == read_captions(coco) == wanted


def test_neither(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a.jpg": "no list"}')
    with pytest.raises(DataError, match=r"a\.jpg"):
        read_captions(path)
