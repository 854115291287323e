from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.formats import rlhf_v
from data.formats.base import Format
from data.jsonl import DataError, Row, dump, write_json
from data.schema import Image, Message, Preference, Response

TEXTS = {"question": "What is it?", "chosen": "A cat.", "rejected": "A dog."}
REST = {
    "ds_name": "RLHF-V",
    "origin_dataset": "LCS-558K",
    "origin_split": '{"model": "m", "type": "detail"}',
    "idx": 7,
    "image_path": "llava/7.jpg",
}
PICTURE = {"bytes": b"\xff\xd8raw", "path": "7.jpg"}


def rlhf(**changes: Any) -> dict[str, Any]:
    return REST | {"image": "7.jpg", "text": json.dumps(TEXTS)} | changes


def rlaif(**changes: Any) -> dict[str, Any]:
    return REST | TEXTS | {"image": "7.jpg"} | changes


def read(tmp_path: Path, fmt: Format, *rows: Any) -> list[Preference]:
    write_json(tmp_path / "in.json", list(rows))
    return fmt.read(tmp_path / "in.json", strict=True)


def wanted(number: int, image: Image | None, **meta: Any) -> Preference:
    kept = ("idx", "origin_dataset", "origin_split", "image_path")
    return Preference(
        id=f"in-{number}",
        image=image,
        messages=[Message(role="user", content="What is it?")],
        responses=[Response(text="A cat."), Response(text="A dog.")],
        choices={"overall": 0},
        source="RLHF-V",
        meta={key: REST[key] for key in kept} | meta,
    )


@pytest.mark.parametrize(("fmt", "make"), [(rlhf_v.RLHF_V, rlhf), (rlhf_v.RLAIF_V, rlaif)])
def test_parquet_with_pictures(fmt: Format, make: Any, tmp_path: Path) -> None:
    rows = [
        make(image=PICTURE),
        make(image=PICTURE, image_path=None),
        make(image={"bytes": None, "path": "7.jpg"}),
        make(image=None, origin_dataset=None, idx=None, origin_split=None),
        make(image={"bytes": b"x", "path": None}, image_path=""),
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    one, two, three, four, five = fmt.read(tmp_path / "in.parquet", strict=True)
    assert one == wanted(0, Image(id="llava/7.jpg", data=PICTURE["bytes"]))
    assert two.image == Image(id="7.jpg", data=PICTURE["bytes"]) and "image_path" not in two.meta
    assert three == wanted(2, Image(id="llava/7.jpg", path="7.jpg"))
    assert four.image == Image(id="llava/7.jpg", path="llava/7.jpg")
    assert four.meta == {"image_path": "llava/7.jpg"}
    assert five.image == Image(id="in-4", data=b"x")
    assert dump(one)["meta"]["idx"] == 7


@pytest.mark.parametrize(("fmt", "make"), [(rlhf_v.RLHF_V, rlhf), (rlhf_v.RLAIF_V, rlaif)])
def test_json_with_base64_or_paths(fmt: Format, make: Any, tmp_path: Path) -> None:
    coded = {"bytes": base64.b64encode(PICTURE["bytes"]).decode(), "path": "7.jpg"}
    bare = {key: value for key, value in make().items() if key != "image"}
    none = {key: value for key, value in bare.items() if key != "image_path"}
    rows = [make(), make(image=coded), bare, none | {"id": 12}]
    one, two, three, four = read(tmp_path, fmt, *rows)
    assert one == wanted(0, Image(id="llava/7.jpg", path="7.jpg"))
    assert two == wanted(1, Image(id="llava/7.jpg", data=PICTURE["bytes"]))
    assert three == wanted(2, Image(id="llava/7.jpg", path="llava/7.jpg"))
    assert four.image is None and four.id == "12"
    assert fmt.needs <= make().keys() <= fmt.keys


def test_text_may_be_an_object_and_the_marker_goes(tmp_path: Path) -> None:
    marked = TEXTS | {"question": "<image>\nWhat is it?"}
    one, two = read(tmp_path, rlhf_v.RLHF_V, rlhf(text=marked), rlhf(text=json.dumps(marked)))
    (three,) = read(tmp_path, rlhf_v.RLAIF_V, rlaif(question="What is it?\n<image>"))
    assert [p.messages[0].content for p in (one, two, three)] == ["What is it?"] * 3


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"text": None}, "text"),
        ({"text": "no JSON"}, "text"),
        ({"text": "[1]"}, "text"),
        ({"text": '{"question": "\\ud83d"}'}, "text.question"),
        ({"text": "{}"}, "text.question"),
        ({"text": {"question": "Q", "chosen": "A"}}, "text.rejected"),
        ({"text": TEXTS | {"chosen": 3}}, "text.chosen"),
        ({"text": TEXTS | {"chosen": "an <image>"}}, "text.chosen"),
        ({"text": TEXTS | {"question": "<image>Q<image>"}}, "text.question"),
        ({"text": TEXTS | {"question": "<image>Q"}, "image": None, "image_path": None}, "text.question"),
        ({"ds_name": None}, "ds_name"),
        ({"image": 3}, "image"),
        ({"image": {"bytes": "%%"}}, "image.bytes"),
        ({"image": {"bytes": None, "path": None}, "image_path": None}, "image"),
        ({"image": {"path": 3}}, "image.path"),
        ({"image": "/etc/x.jpg"}, "image"),
        ({"image": None, "image_path": "../x.jpg"}, "image_path"),
        ({"image_path": 3}, "image_path"),
        ({"id": 1.5}, "id"),
    ],
)
def test_bad_rows_name_the_index_and_key(changes: dict[str, Any], key: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, rlhf_v.RLHF_V, rlhf(), rlhf(**changes))
    assert (caught.value.index, caught.value.key) == (1, key)
    assert caught.value.mend


@pytest.mark.parametrize("key", sorted(TEXTS))
def test_bad_rlaif_rows_name_the_key(key: str, tmp_path: Path) -> None:
    for row in (rlaif(**{key: None}), {k: v for k, v in rlaif().items() if k != key}):
        with pytest.raises(DataError) as caught:
            read(tmp_path, rlhf_v.RLAIF_V, row)
        assert (caught.value.index, caught.value.key) == (0, key)
    pq.write_table(pa.Table.from_pylist([rlaif(**{key: b"x"})]), tmp_path / "in.parquet")
    ((_, error),) = rlhf_v.RLAIF_V.pairs(tmp_path / "in.parquet")
    assert isinstance(error, DataError) and (error.index, error.key) == (0, key)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.tuples(inner, inner)
        | st.dictionaries(st.sampled_from(["question", "chosen", "rejected", "bytes", "path"]), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=50, deadline=None)
@given(changes=st.dictionaries(st.sampled_from([*REST, *TEXTS, "image", "text", "id"]), VALUES, min_size=1))
def test_nothing_but_data_errors_comes_out(changes: dict[str, Any]) -> None:
    for fmt, row in ((rlhf_v.RLHF_V, rlhf()), (rlhf_v.RLAIF_V, rlaif())):
        assert fmt.parse is not None
        try:
            got = fmt.parse(Row("f", index=0), row | changes)
        except DataError as error:
            assert error.rule
        else:
            json.dumps(dump(got))


@settings(max_examples=50, deadline=None)
@given(text=st.text() | st.text('{}[]":,x\\u0', max_size=12), at=st.integers(0, 80))
def test_damaged_texts_are_data_errors(text: str, at: int) -> None:
    whole = json.dumps(TEXTS)
    assert rlhf_v.RLHF_V.parse is not None
    try:
        got = rlhf_v.RLHF_V.parse(Row("f", index=0), rlhf(text=whole[:at] + text + whole[at + len(text) :]))
    except DataError as error:
        assert error.key and error.key.startswith("text")
    else:
        assert got.preferred == 0
