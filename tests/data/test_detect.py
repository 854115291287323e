"""Formats told from what a file holds."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.detect import OWN, describe, detect, one
from data.formats import FORMATS
from data.jsonl import DataError, read_rows, write_records
from data.schema import Prompt


def names(path: Path) -> list[str]:
    return [found.name for found in detect(path)]


@pytest.mark.parametrize("name", [n for n, f in FORMATS.items() if f.holder == "rows"])
@pytest.mark.parametrize("lines", [True, False])
def test_rows_with_a_format_s_keys_are_of_that_format(name: str, lines: bool, tmp_path: Path) -> None:
    fmt = FORMATS[name]
    assert fmt.needs
    row = dict.fromkeys(sorted(fmt.needs))
    path = tmp_path / "x.json"
    path.write_text((json.dumps(row) + "\n") * 2 if lines else json.dumps([row, row], indent=1))
    # a benchmark's prompts have the keys of its items, which come first
    assert name in names(path) and FORMATS[names(path)[0]].needs == fmt.needs
    assert ("JSON lines" if lines else "a JSON array") in describe(detect(path))


def test_keys_that_some_rows_lack_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"conversations": [], "caption_type": 1}, {"conversations": []}]))
    assert names(path) == ["llava"]


def test_one_bad_row_does_not_hide_what_a_file_is(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"conversations": []}] * 9 + [{"conversation": []}]))
    assert names(path) == ["llava"]
    assert "have conversations (9 of 10)" in describe(detect(path))


def test_a_folder_of_parquet_shards(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in (1, 0):
        rows = [{"images": [], "messages": [{"role": "user", "content": f"Q{number}"}]}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"data/train-{number}.parquet")
    assert names(tmp_path) == ["trl_messages"]
    assert [row["messages"][0]["content"] for _, row in read_rows(tmp_path)] == ["Q0", "Q1"]


def test_our_own_records(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write_records(path, [Prompt(id="a", question="Q?")])
    assert names(path) == [OWN]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"nothing": 1}', '[{"nothing": 1}]', "no json", "[1, 2]", "[", '{"a']
)
def test_nothing_fits(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    try:
        assert names(path) == []
    except DataError as error:
        assert error.file == str(path)
    with pytest.raises(DataError):
        one(path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        detect(tmp_path / "x.json")


def test_the_names_are_the_formats() -> None:
    assert all(name == fmt.name for name, fmt in FORMATS.items())
