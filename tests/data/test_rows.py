"""Rows from whatever holds them, each with its place, or with what is wrong with it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.formats import llava
from data.jsonl import DataError, Rejects, keep, read_records, write_lines
from data.rows import BATCH, container, is_reject, plain, read_members, read_rows

Place = tuple[int | None, int | None]


def read(path: Path, data: bytes | str | None = None) -> list[tuple[Place, Any]]:
    """((line, index), value or rule) of each row; the places of errors are those of their rows."""
    if data is not None:
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    found = []
    for row, value in read_rows(path):
        assert row.file == str(path)
        if isinstance(value, DataError):
            assert (value.file, value.line, value.index) == (row.file, row.line, row.index)
            assert value.mend
        else:
            assert row.raw == value
        found.append(((row.line, row.index), value.rule if isinstance(value, DataError) else value))
    return found


@pytest.mark.parametrize(
    ("name", "data", "how"),
    [
        ("a.json", b"[]", "array"),
        ("a.jsonl", b"\xef\xbb\xbf \r\n\t[1]", "array"),
        ("a.json", b'{"a": [1]}', "lines"),
        ("a.json", b"", "lines"),
        ("a.TSV", b"[a\tb", "tsv"),
        ("a.json", b"PAR1", "parquet"),
        ("a.tsv", b"PAR1", "parquet"),
    ],
)
def test_the_first_bytes_tell_what_holds_the_rows(tmp_path: Path, name: str, data: bytes, how: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert container(tmp_path / name) == how


def test_no_file_is_an_error_of_ours(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path, tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(DataError) as caught:
            list(read_rows(path))
        assert caught.value.file == str(path) and caught.value.mend


def test_json_lines(tmp_path: Path) -> None:
    data = '\ufeff{"a": "\u2028é"}\r\n\n  \t\n{"b": \n[1]\n3\n"x"\nnull\n{"c": NaN}'.encode()
    found = read(tmp_path / "a.jsonl", data.replace(b'{"c"', b'{"a": "\xff"}\n{"c"'))
    assert [place for place, _ in found] == [(n, None) for n in (1, 4, 5, 6, 7, 8, 9, 10)]
    values = [value for _, value in found]
    assert values[0] == {"a": "\u2028é"}
    assert "not valid JSON" in values[1]
    assert [v.split(",")[0] for v in values[2:6]] == [
        f"the record is a {kind}" for kind in ("list", "int", "str", "NoneType")
    ]
    assert values[6] == "not UTF-8 (byte 7 of the line)"
    assert list(values[7]) == ["c"]


def test_odd_lines(tmp_path: Path) -> None:
    lines = [
        '{"a": "\\ud83d"}',
        '{"a": "\\ud83d\\ude00"}',
        "[" * 100_000,
        '{"a": ' + "7" * 5000 + "}",
        '{"a": 1} {"b": 2}',
        '{"a": 1, "a": 2}',
    ]
    values = [value for _, value in read(tmp_path / "a", "\n".join(["{}", *lines]))]
    assert "lone surrogate" in values[1]
    assert values[2] == {"a": "😀"}
    assert values[3] == "nested too deep"
    assert "not readable" in values[4]
    assert "not valid JSON (Extra data, column 10)" in values[5]
    assert values[6] == {"a": 2}


def test_an_array(tmp_path: Path) -> None:
    data = b'[{"a": 1},\n 2, [3], null,\n{"b": "\xff"}, {"c": "\\ud83d"}, {"d": {}}]'
    found = read(tmp_path / "a.json", data)
    assert [place for place, _ in found] == [(None, n) for n in range(7)]
    values = [value for _, value in found]
    assert values[0] == {"a": 1} and values[6] == {"d": {}}
    assert [v.split(",")[0] for v in values[1:4]] == [
        f"the record is a {kind}" for kind in ("int", "list", "NoneType")
    ]
    assert all("lone surrogate" in v for v in values[4:6])
    assert read(tmp_path / "a.json", "[]") == []


def test_a_broken_array_gives_what_comes_before_and_then_raises(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1},\n{"b": 2},\n{"c": oops}]')
    found = []
    with pytest.raises(DataError, match=r"a\.json:3: not valid JSON"):
        for _, value in read_rows(path):
            found.append(value)
    assert found == [{"a": 1}, {"b": 2}]


def test_members_of_an_object_of_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"info": 1, "images": [{"id": 1}, {"id": "\\ud83d"}], "more": [2]}')
    found = [(key, row.index, value) for key, row, value in read_members(path)]
    assert found[:2] == [("info", None, 1), ("images", 0, {"id": 1})]
    assert found[3] == ("more", 0, 2)
    error = found[2][2]
    assert isinstance(error, DataError) and (error.index, error.key) == (1, "id")


def parquet(path: Path, table: pa.Table, **options: Any) -> Path:
    pq.write_table(table, path, **options)
    return path


def test_parquet_with_pictures_in_cells(tmp_path: Path) -> None:
    rows = [
        {"id": n, "image": {"bytes": bytes([n % 256, 255]), "path": f"{n}.png"}, "texts": ["a", None]}
        for n in range(2 * BATCH + 1)
    ]
    path = parquet(tmp_path / "a.parquet", pa.Table.from_pylist(rows), row_group_size=BATCH - 1)
    found = read(path)
    assert [value for _, value in found] == rows
    assert [place for place, _ in found] == [(None, n) for n in range(len(rows))]
    assert plain(found[1][1]) == {
        "id": 1,
        "image": {"bytes": base64.b64encode(b"\1\xff").decode(), "path": "1.png"},
        "texts": ["a", None],
    }
    assert read(parquet(tmp_path / "none.parquet", pa.table({"a": pa.array([], pa.int64())}))) == []


def test_damaged_parquet_is_one_error(tmp_path: Path) -> None:
    rows = [{"id": n, "text": f"some words {n}" * 20} for n in range(300)]
    path = parquet(tmp_path / "a.parquet", pa.Table.from_pylist(rows), compression="snappy")
    whole = path.read_bytes()
    broken = [whole[:n] for n in (4, 8, 100, len(whole) // 2, len(whole) - 1)]
    broken.append(whole[:4] + bytes(len(whole) - 12) + whole[-8:])  # a footer that is none
    broken.append(whole[:60] + b"\xff" * 600 + whole[660:])  # pages that are none
    for data in broken:
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"a\.parquet\[0\]: damaged Parquet \(.+\); copy or download"):
            list(read_rows(path))


def test_a_table_of_tabs(tmp_path: Path) -> None:
    data = (
        "\ufeffindex\tquestion\timage\r\n"
        '0\t"tab\there, ""quoted"", and\nanother line"\tAAAA\r\n'
        "1\tplain 'é'\t\r\n"
        "\r\n"
        "2\ttoo few\r\n"
        "3\ttoo\tmany\tcells\r\n"
        "4\tlast\tBBBB"
    )
    few, many = (f"{n} cells, where the header has 3" for n in (2, 4))
    found = read(tmp_path / "a.tsv", data)
    assert [value for _, value in found] == [
        {"index": "0", "question": 'tab\there, "quoted", and\nanother line', "image": "AAAA"},
        {"index": "1", "question": "plain 'é'", "image": ""},
        few,
        many,
        {"index": "4", "question": "last", "image": "BBBB"},
    ]
    indices = [index for (_, index), _ in found]
    assert indices[:2] == [0, 1] and indices == sorted(set(indices))


def test_a_cell_may_hold_a_picture(tmp_path: Path) -> None:
    cell = "A" * 300_000  # beyond the csv module's own limit
    assert read(tmp_path / "a.tsv", f"image\tb\n{cell}\t1\n")[0][1] == {"image": cell, "b": "1"}


def test_tables_with_bytes_that_are_no_text(tmp_path: Path) -> None:
    found = read(tmp_path / "a.tsv", b"a\tb\n1\t2\n\xff\t2\n3\t4\n")
    assert found[0][1] == {"a": "1", "b": "2"} and found[2][1] == {"a": "3", "b": "4"}
    assert "half a character" in found[1][1]
    assert all("half a character" in rule for _, rule in read(tmp_path / "a.tsv", b"\xffa\tb\n1\t2\n"))
    assert read(tmp_path / "a.tsv", b"") == [] == read(tmp_path / "a.tsv", b"a\tb\n")


def test_rows_behind_an_open_quote_are_not_lost(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('a\tb\n1\t"never closed\n2\t3\n')
    told = []
    try:
        told = [rule for _, rule in read(tmp_path / "a.tsv") if isinstance(rule, str)]
    except DataError as error:
        told.append(error.rule)
    assert told


@pytest.mark.parametrize("kind", ["tsv", "parquet"])
def test_columns_of_one_name_are_told(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "tsv":
        path.write_text("a\ta\n1\t2\n")
    else:
        parquet(path, pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]))
    try:
        assert all(isinstance(value, str) for _, value in read(path))
    except DataError as error:
        assert "'a'" in error.rule


def test_all_cells_of_a_row_with_too_many_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("a\tb\n1\t2\tthird\n")
    ((row, _),) = read_rows(tmp_path / "a.tsv")
    assert "third" in json.dumps(row.raw)


@pytest.mark.parametrize("cell", [pa.array([2**60], pa.timestamp("ms")), pa.array([2**30], pa.date32())])
def test_parquet_dates_that_python_lacks(tmp_path: Path, cell: pa.Array) -> None:
    path = parquet(tmp_path / "a.parquet", pa.table({"when": cell}))
    with pytest.raises(DataError):
        list(read_rows(path))


def test_a_reject_may_be_nested_as_deep_as_what_is_read(tmp_path: Path) -> None:
    path, rejects = tmp_path / "a.jsonl", tmp_path / "r.jsonl"
    path.write_text('{"a": ' + "[" * 700 + "]" * 700 + "}\n")
    assert list(keep(llava.LLAVA.pairs(path), max_bad=1, rejects=rejects)) == []
    assert json.loads(rejects.read_text())["record"] == json.loads(path.read_text())


TURNS = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]


@pytest.mark.parametrize("later", [True, False])
@pytest.mark.parametrize("array", [True, False])
def test_a_rejects_file_is_mended_and_read_back(tmp_path: Path, array: bool, later: bool) -> None:
    bad = [{"id": 1, "conversations": TURNS[:1]}, {"id": 2, "conversations": "é\ud83d"}, 3]
    path, rejects = tmp_path / "in.json", tmp_path / "rejects.jsonl"
    texts = [json.dumps(row) for row in [{"id": 0, "conversations": TURNS}, *bad]]
    path.write_text(f"[{','.join(texts)}]" if array else "\n".join(texts))
    waiting = Rejects()
    pairs = llava.LLAVA.pairs(path)
    assert [r.id for r in keep(pairs, max_bad=1, rejects=waiting if later else rejects)] == ["0"]
    if later:
        waiting.write(rejects)

    told = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert [row["record"] for row in told] == bad
    assert all(is_reject(row) for row in told)
    assert [row["index" if array else "line"] for row in told] == ([1, 2, 3] if array else [2, 3, 4])
    # nothing mended: nothing is read, and every reason is told again
    again = [got for _, got in llava.LLAVA.pairs(rejects)]
    assert all(isinstance(got, DataError) for got in again)
    assert [(got.rule, got.key) for got in again[:1]] == [(told[0]["rule"], told[0].get("key"))]

    told[0]["record"]["conversations"] = TURNS
    told[1]["record"] = {"id": 2, "conversations": TURNS}
    write_lines(rejects, (json.dumps(row) for row in told))
    pairs = list(llava.LLAVA.pairs(rejects))
    assert [got.id for _, got in pairs[:2]] == ["1", "2"]
    assert [row.line for row, _ in pairs] == [1, 2, 3]
    assert pairs[0][0].raw == told[0]["record"]
    assert pairs[2][1].rule.startswith("the record is a int")


def test_rejects_of_our_own_records_are_read_back_too(tmp_path: Path) -> None:
    path, rejects = tmp_path / "in.jsonl", tmp_path / "rejects.jsonl"
    path.write_text('{"kind": "prompt", "id": "a"}\nno json\n')
    assert read_records(path, max_bad=1, rejects=rejects) == []
    first, second = (json.loads(line) for line in rejects.read_text().splitlines())
    first["record"]["question"] = "Q?"
    second["record"] = {"kind": "prompt", "id": "b", "question": "Q?"}
    write_lines(rejects, (json.dumps(row) for row in (first, second)))
    assert [r.id for r in read_records(rejects, strict=True)] == ["a", "b"]


def test_what_is_no_reject() -> None:
    reject = {"file": "f", "rule": "r", "record": {}}
    assert is_reject(reject) and is_reject(reject | {"line": 1, "key": "k", "mend": "m", "index": 0})
    assert not is_reject(reject | {"id": 1})
    assert not is_reject({"file": "f", "record": {}})
