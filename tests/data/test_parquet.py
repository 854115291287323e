"""Rows as Parquet and as a data set, read back by ``datasets`` and by our own readers."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pil

from data import parquet
from data.formats import trl
from data.jsonl import DataError
from data.parquet import embed, write_dataset, write_parquet
from data.rows import read_rows
from data.schema import Example, Facts, Image, Message, Preference, Response


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Pil.new("RGB", (3, 2), (shade, 10, 20)).save(file, "PNG")
    return file.getvalue()


def rows_of(path: Path) -> list[Any]:
    return [value for _, value in read_rows(path)]


def preferences(count: int) -> list[Preference]:
    return [
        Preference(
            id=f"p{i}",
            image=Image(id=f"d/{i}.png", path=f"d/{i}.png") if i % 3 else None,
            messages=[Message(role="user", content=f"Q{i}?")],
            responses=[Response(text="good"), Response(text="bad")],
            choices=[{"overall": 0}, {"hallucination": None, "helpfulness": 0}, {"hallucination": 0}][i % 3],
            facts=[Facts(), Facts(captions=["c"], answer="A"), Facts(objects=["o"])][i % 3],
            source="s" if i % 2 else None,
            meta={"n": i} if i % 2 else {"t": "x", "deep": [None]},
        )
        for i in range(count)
    ]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images" / "d").mkdir(parents=True)
    for i in range(7):
        (tmp_path / "images" / "d" / f"{i}.png").write_bytes(png(i))
    return tmp_path / "images"


def with_bytes(record: Any) -> Any:
    if record.image is None:
        return record
    data = png(int(record.id[1:]))
    return record.model_copy(update={"image": Image(id=record.image.id, data=data)})


def test_a_data_set_that_datasets_loads(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import datasets

    ours, folder = preferences(7), tmp_path / "out" / "set"
    rows = [trl.PREFERENCES.to_row(record) for record in ours]
    assert write_dataset(folder, embed(rows, root), card="# Mine\n\nText.", shard_rows=3) == 7
    names = [f"train-0000{i}-of-00003.parquet" for i in range(3)]
    assert sorted(p.name for p in (folder / "data").iterdir()) == names
    assert [p.name for p in folder.parent.iterdir()] == ["set"]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n") and card.endswith("---\n\n# Mine\n\nText.\n") and "- n<1K\n" in card

    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"] and len(loaded["train"]) == 7
    assert loaded["train"].features["images"] == datasets.List(datasets.Image())
    for i, row in enumerate(loaded["train"]):
        assert row["id"] == f"p{i}" and row["prompt"] == [{"role": "user", "content": f"Q{i}?"}]
        assert row["chosen"][0]["content"] == "good" and row["source"] == ("s" if i % 2 else None)
        assert len(row["images"]) == (1 if i % 3 else 0)
        for picture in row["images"]:
            assert np.array_equal(np.asarray(picture), np.asarray(Pil.open(io.BytesIO(png(i)))))
    back = [record for name in names for record in trl.read(folder / "data" / name, strict=True)]
    assert back == [with_bytes(record) for record in ours]


def test_one_picture_a_row_and_bytes_in_base64(root: Path, tmp_path: Path) -> None:
    import datasets

    inline = {"path": "x", "bytes": base64.b64encode(png(9)).decode()}
    rows = [{"id": 1, "image": "d/1.png"}, {"id": 2, "image": inline}, {"id": 3}, {"id": 4, "image": None}]
    assert write_parquet(tmp_path / "x.parquet", embed(rows, root)) == 4
    pictures = [{"bytes": png(1), "path": "d/1.png"}, {"bytes": png(9), "path": "x"}, None, None]
    assert [row["image"] for row in rows_of(tmp_path / "x.parquet")] == pictures
    loaded = datasets.Dataset.from_parquet(str(tmp_path / "x.parquet"), cache_dir=str(tmp_path / "cache"))
    assert loaded.features["image"] == datasets.Image()
    assert loaded[1]["image"].getpixel((0, 0)) == (9, 10, 20) and loaded[2]["image"] is None
    assert rows[0]["image"] == "d/1.png"  # the given rows are left alone


def test_all_three_layouts_of_trl_come_back(root: Path, tmp_path: Path) -> None:
    turns = [Message(role=role, content=role) for role in ("system", "user", "assistant")]
    more = {"task": "t", "answer": "B", "split": "train", "facts": Facts(rationales=["r"])}
    image = Image(id="d/1.png", path="d/1.png")
    ours = [Example(id="p1", image=image, messages=turns, **more), Example(id="p2", messages=turns)]
    for fmt in (trl.CONVERSATIONS, trl.COMPLETIONS):
        write_parquet(tmp_path / "x.parquet", embed((fmt.to_row(record) for record in ours), root))
        assert fmt.read(tmp_path / "x.parquet", strict=True) == [with_bytes(record) for record in ours]


def test_names_and_urls_stay_as_they_are(tmp_path: Path) -> None:
    rows = [{"image": "a/b.png", "images": ["http://h/x.png"]}]
    assert write_parquet(tmp_path / "x.parquet", rows) == 1
    assert rows_of(tmp_path / "x.parquet") == rows
    assert list(embed([{"images": ["http://h/x.png"]}, {"image": None}, {}], None)) == [
        {"images": ["http://h/x.png"]}, {"image": None}, {},
    ]  # fmt: skip
    mixed = [{"images": [{"bytes": b"x", "path": "a"}]}, {"images": ["http://h/x.png"]}]
    write_parquet(tmp_path / "x.parquet", mixed)
    assert rows_of(tmp_path / "x.parquet")[1] == {"images": [{"bytes": None, "path": "http://h/x.png"}]}


def test_rows_go_out_in_groups_and_unknown_parts_are_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "GROUP_ROWS", 2)
    rows = [
        {"a": None, "images": [], "deep": [{"k": None}]},
        {"a": None, "images": [], "deep": []},
        {"a": "x", "images": [{"bytes": b"y" * 40, "path": None}], "deep": [{"k": "z"}]},
        {"a": None, "images": [{"bytes": b"y" * 40, "path": "p"}], "deep": None},
        {"a": "y", "images": None, "deep": None},
    ]
    taken: list[int] = []

    def counted() -> Any:
        for i, row in enumerate(rows):
            taken.append(i)
            yield row

    write_parquet(tmp_path / "x.parquet", counted())
    assert rows_of(tmp_path / "x.parquet") == rows
    with pq.ParquetFile(tmp_path / "x.parquet") as file:
        assert [file.metadata.row_group(i).num_rows for i in range(3)] == [2, 2, 1]
    monkeypatch.setattr(parquet, "GROUP_BYTES", 30)
    write_parquet(tmp_path / "x.parquet", rows)
    with pq.ParquetFile(tmp_path / "x.parquet") as file:
        assert [file.metadata.row_group(i).num_rows for i in range(4)] == [2, 1, 1, 1]
    assert write_parquet(tmp_path / "x.parquet", []) == 0 and rows_of(tmp_path / "x.parquet") == []


@pytest.mark.parametrize(
    ("rows", "index", "key"),
    [
        ([{"a": 1}, {"a": 2}, {"a": 3}, {"a": "x"}], 3, "a"),
        ([{"a": 1}, {"a": 2}, {"a": 3}, {"a": 2.5}], 3, "a"),
        ([{"a": 1}, {"a": "x"}], 1, "a"),
        ([{"a": b"1"}, {"a": "x"}], 1, "a"),
        ([{"a": b"1"}, {}, {}, {"a": "x"}], 3, "a"),
        ([{"a": {"b": 1}}, {"a": None}, {"a": {"b": 2, "c": 3}}], 2, "a"),
        ([{"a": [{"b": 1}]}, {}, {"a": [{"c": 2}]}], 2, "a"),
        ([{"a": 1}, {}, {}, {"b": 1}], 3, "b"),
        ([{"a": 1 << 70}], 0, "a"),
        ([{}, {}], 0, None),
        ([{"a": "x"}, {"a": "\ud83d"}], 1, "a"),
        ([{"images": ["a"]}, {}, {"images": [{"bytes": b"x"}]}], 2, "images"),
        ([{}, {"image": {"bytes": "%%", "path": "a"}}], 1, "image.bytes"),
        ([{}, {"images": [{"bytes": 3, "path": "a"}]}], 1, "images.0.bytes"),
        ([{}, {"images": [{"byte": b"x", "path": "a"}]}], 1, "images.0.byte"),
        ([{"image": {"bytes": b"x", "path": 3}}], 0, "image"),
        ([{"a": 1}, {"image": {"bytes": b"x"}}, {"image": 4}], 2, "image"),
        ([{"images": [{"bytes": b"x"}, 4]}], 0, "images"),
    ],
)
def test_a_row_that_does_not_fit_is_named(
    rows: Any, index: int, key: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "GROUP_ROWS", 2)
    for write in (write_parquet, lambda path, rows: write_dataset(path, rows, card="", shard_rows=1)):
        with pytest.raises(DataError) as caught:
            write(tmp_path / "x", rows)
        assert (caught.value.index, caught.value.key) == (index, key) and caught.value.mend
        assert caught.value.file == str(tmp_path / "x")
        assert list(tmp_path.iterdir()) == []


def test_what_parquet_cannot_hold_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be Parquet"):
        write_parquet(tmp_path / "x", [{"a": {}}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../out.png", "/etc/hostname", "missing.png", "link.png", "empty.png"])
def test_pictures_outside_or_missing_are_refused(name: str, root: Path) -> None:
    (root.parent / "out.png").write_bytes(png(1))
    (root / "link.png").symlink_to(root.parent / "out.png")
    (root / "empty.png").touch()
    for row, key in (({"images": [{"path": name, "bytes": None}]}, "images.0"), ({"image": name}, "image")):
        with pytest.raises(DataError) as caught:
            list(embed([{"image": "d/1.png"}, row], root))
        assert (caught.value.index, caught.value.key) == (1, key)


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    def broken() -> Any:
        yield {"a": 1}
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_dataset(tmp_path / "x", broken(), card="")
    with pytest.raises(DataError, match="no rows"):
        write_dataset(tmp_path / "x", [], card="")
    for split, shard_rows in (("a/b", 1), ("../a", 1), ("", 1), ("train", 0)):
        with pytest.raises(DataError):
            write_dataset(tmp_path / "x", [{"a": 1}], card="", split=split, shard_rows=shard_rows)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x").mkdir()
    assert write_dataset(tmp_path / "x", [{"a": 1}], card="") == 1
    with pytest.raises(DataError, match="is there already"):
        write_dataset(tmp_path / "x", [{"a": 2}], card="")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is there already"):
        write_dataset(tmp_path / "file", [{"a": 2}], card="")
    assert rows_of(tmp_path / "x" / "data" / "train-00000-of-00001.parquet") == [{"a": 1}]
