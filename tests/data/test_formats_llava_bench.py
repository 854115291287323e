from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.formats import llava_bench
from data.formats.llava_bench import LlavaBenchItem
from data.jsonl import DataError, write_rows
from data.schema import Facts, Image, Prompt

ROW: dict[str, Any] = {"question_id": 0, "image": "1.jpg", "text": "What colour is it?", "category": "conv"}
TOLD: dict[str, Any] = {
    "id": "1",
    "image": "1.jpg",
    "captions": ["A cat on a mat.", "A cat."],
    "instances": [
        {"category": "cat", "bbox": [0.1, 0.2, 0.3, 0.4]},
        {"category": "mat", "bbox": [0, 0, 1, 1]},
        {"category": "cat", "bbox": [0.5, 0.5, 0.6, 0.6]},
    ],
}


def pairs(tmp_path: Path, rows: list[Any], told: list[Any] | None = None) -> list[Prompt | DataError]:
    options = {} if told is None else {"captions": str(tmp_path / "c.jsonl")}
    write_rows(tmp_path / "q.jsonl", rows)
    write_rows(tmp_path / "c.jsonl", told or [])
    return [found for _, found in llava_bench.PROMPTS.pairs(tmp_path / "q.jsonl", **options)]


def test_the_category_gives_the_length_class(tmp_path: Path) -> None:
    rows = [ROW, ROW | {"question_id": "b", "category": "detail"}]
    assert pairs(tmp_path, [*rows, ROW | {"question_id": 2, "category": "complex"}]) == [
        Prompt(
            id=name,
            image=Image(id="1.jpg", path="1.jpg"),
            question="What colour is it?",
            length_class=length,
            source="llava_bench",
        )
        for name, length in (("0", "general"), ("b", "detail"), ("2", "complex"))
    ]


def test_captions_and_the_names_of_what_is_boxed_are_facts(tmp_path: Path) -> None:
    wild = {"image": "2.jpg", "caption": "A dog {in} a park."}
    got = pairs(tmp_path, [ROW, ROW | {"question_id": 1, "image": "2.jpg"}], [TOLD, wild])
    assert [p.facts for p in got if isinstance(p, Prompt)] == [
        Facts(captions=["A cat on a mat.", "A cat."], objects=["cat", "mat"]),
        Facts(captions=["A dog {in} a park."]),
    ]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"question_id": 0}, "question_id"),
        ({"question_id": "0"}, "question_id"),
        ({"question_id": True}, "question_id"),
        ({"image": "/1.jpg"}, "image"),
        ({"image": "other.jpg"}, "image"),
        ({"text": None}, "text"),
        ({"category": "chat"}, "category"),
    ],
)
def test_a_bad_question_stands_at_its_line(tmp_path: Path, change: dict[str, Any], key: str) -> None:
    good, bad, after = pairs(tmp_path, [ROW, ROW | {"question_id": 1} | change, ROW | {"question_id": 2}], [
        TOLD, {"image": "/1.jpg", "caption": "Told, and outside."},
    ])  # fmt: skip
    assert isinstance(bad, DataError) and (bad.line, bad.key) == (2, key) and bad.mend
    assert [p.id for p in (good, after) if isinstance(p, Prompt)] == ["0", "2"]


@pytest.mark.parametrize(
    ("told", "key"),
    [
        (TOLD, "image"),
        ({"image": "2.jpg"}, "captions"),
        ({"image": "2.jpg", "captions": "A cat."}, "captions"),
        ({"image": "2.jpg", "captions": ["A cat.", 1]}, "captions.1"),
        ({"image": "2.jpg", "caption": None}, "caption"),
        ({"image": "2.jpg", "instances": ["cat"]}, "instances.0"),
        ({"image": "2.jpg", "instances": [{"category": "cat"}]}, "instances.0.bbox"),
        ({"captions": ["A cat."]}, "image"),
    ],
)
def test_a_bad_description_stands_at_its_line(tmp_path: Path, told: dict[str, Any], key: str) -> None:
    bad, good = pairs(tmp_path, [ROW], [TOLD, told])
    assert isinstance(bad, DataError) and (bad.line, bad.key) == (2, key)
    assert bad.file == str(tmp_path / "c.jsonl") and isinstance(good, Prompt)


def test_bytes_in_parquet_are_no_text(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([ROW | {"text": b"\xff\xfe"}]), tmp_path / "q.parquet")
    ((_, got),) = llava_bench.PROMPTS.pairs(tmp_path / "q.parquet")
    assert isinstance(got, DataError) and (got.index, got.key) == (0, "text")


def test_items_hold_reference_and_context(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("q.jsonl", "r.jsonl", "c.jsonl")]
    write_rows(files[0], [ROW])
    write_rows(files[1], [{"question_id": 0, "text": "Black."}])
    write_rows(files[2], [TOLD])
    context = (
        "A cat on a mat.\nA cat.\ncat: [0.1, 0.2, 0.3, 0.4]\nmat: [0, 0, 1, 1]\ncat: [0.5, 0.5, 0.6, 0.6]"
    )
    item = LlavaBenchItem("0", "1.jpg", "What colour is it?", "conv", "Black.", context)
    assert llava_bench.read_questions(*files) == (item,)
    # what was another exception than ours once
    write_rows(files[2], [TOLD | {"captions": [1]}])
    with pytest.raises(DataError) as caught:
        llava_bench.read_questions(*files)
    assert (caught.value.file, caught.value.line, caught.value.key) == (str(files[2]), 1, "captions.0")


def test_the_official_files_as_prompts(shared: Path) -> None:
    folder = shared / "data" / "llava_bench"
    options = {"captions": str(folder / "caps_boxes_coco2014_val_80.jsonl")}
    got = llava_bench.read_prompts(folder / "qa90_questions.jsonl", strict=True, options=options)
    assert [p.id for p in got] == [str(n) for n in range(90)]
    assert Counter(p.length_class for p in got) == {"general": 30, "detail": 30, "complex": 30}
    assert got[0].question == "What is the color of the two suitcases in the image?"
    assert all(len(p.facts.captions) >= 5 and p.facts.objects for p in got)
    bare = llava_bench.read_prompts(folder / "qa90_questions.jsonl", strict=True)
    assert [p.model_copy(update={"facts": Facts()}) for p in got] == bare


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


@settings(max_examples=50, deadline=None)
@given(
    key=st.sampled_from(["question_id", "image", "text", "category", "caption", "captions", "instances"]),
    value=JSON | st.lists(st.dictionaries(st.sampled_from(["category", "bbox"]), JSON), max_size=2),
    at=st.integers(0, 200),
    byte=st.binary(max_size=2),
)
def test_nothing_but_data_errors_comes_out(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object, at: int, byte: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp()
    paths = [folder / "mutated_questions.jsonl", folder / "mutated_captions.jsonl"]
    for path, row, more in zip(paths, (ROW, TOLD), ({"question_id": 1}, {"image": "2.jpg"})):
        path.write_text("\n".join(json.dumps(r) for r in (row, row | more | {key: value})))
    got = [found for _, found in llava_bench.PROMPTS.pairs(paths[0], captions=str(paths[1]))]
    assert len(got) >= 2 and all(isinstance(found, Prompt | DataError) for found in got)
    for path in paths:
        data = path.read_bytes()
        path.write_bytes(data[:at] + byte + data[at + 1 :])
    try:
        found = [got for _, got in llava_bench.PROMPTS.pairs(paths[0], captions=str(paths[1]))]
    except DataError as error:
        assert error.file in map(str, paths)
    else:
        assert all(isinstance(got, Prompt | DataError) for got in found)
