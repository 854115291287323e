"""Whatever a file holds, a reader gives records and errors of ours, and raises nothing else."""

from __future__ import annotations

import copy
import io
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pil

from data.detect import Found, detect
from data.formats import FORMATS
from data.formats.base import Format, unique_ids
from data.images import inspect_image, open_image
from data.jsonl import DataError, Row, no_duplicates, record_pairs
from data.schema import Image

_TURNS = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
_ASKED = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
_ANSWER = [{"role": "assistant", "content": "A cat."}]
_OUTPUTS = {"output_1": {"from": "llava", "value": "A cat."}, "output_2": {"from": "gpt", "value": "A dog."}}
_LLAVA = {"id": "1", "image": "a/b.jpg", "conversations": _TURNS}

#: a valid row of each format; formats without one get rows made of their keys
VALID: dict[str, dict[str, Any]] = {
    "llava": _LLAVA,
    "llava_rlhf": _LLAVA | _OUTPUTS | {"conversations": _TURNS[:1], "preference": 1, "hallucination": False},
    "llava_rlhf_prompts": _LLAVA | {"caption_type": 2, "length_bonus": 4.0, "captions": ["A cat sits."]},
    "trl": {
        "id": "1",
        "images": [{"path": "a.png", "bytes": "AAAA"}],
        "prompt": _ASKED,
        "chosen": _ANSWER,
        "rejected": "A dog.",
    },
    "trl_messages": {
        "images": ["a.png"],
        "messages": [*_ASKED, {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}],
    },
    "pope": {"question_id": 1, "image": "a.jpg", "text": "Is there a cat?", "label": "yes"},
    "mmhal": {
        "question_type": "attribute",
        "question_topic": "animal",
        "image_id": "1",
        "image_src": "https://example.org/a.jpg",
        "image_content": ["cat"],
        "question": "What is it?",
        "gt_answer": "A cat.",
        "model_answer": "",
    },
}
OWN: list[dict[str, Any]] = [
    {
        "kind": "example",
        "id": "e",
        "image": {"id": "i", "data": "AAAA"},
        "messages": [{"role": "user", "content": "Q"}, *_ANSWER],
        "facts": {"captions": ["A cat sits."], "answer": "yes"},
    },
    {"kind": "prompt", "id": "p", "image": {"id": "i", "path": "a.png"}, "question": "Q", "answer_type": "A"},
    {
        "kind": "preference",
        "id": "x",
        "messages": [{"role": "user", "content": "Q"}],
        "responses": [{"text": "a", "complete": False}, {"text": "b"}],
        "choices": {"hallucination": None, "helpfulness": 1},
        "meta": {"n": [1, None]},
    },
    {"kind": "verdict", "id": "p", "question": "Q", "response": "r", "judge": "j", "score": 0.5},
]

READABLE = [name for name, fmt in FORMATS.items() if fmt.holder != "folder"]

#: what stands where it should not; half characters only as escapes, which is how JSON holds them
SCALARS = st.sampled_from(
    [None, True, False, 0, -1, 3, 2**70, 1.5, float("nan"), float("inf"), "", "yes", "<image>", "a#2",
     "../a.png", "/a", "http://x/a.png", "\ud83d", "user", "human", "x\0y"]
) | st.text(max_size=5)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda x: (
        st.lists(x, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "from", "role", "value", "content", "path", "kind"]), x, max_size=3
        )
    ),
    max_leaves=6,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterable[tuple[Any, ...]]:
    """The ways to every value inside another."""
    members = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, item in members:
        yield (*path, key)
        yield from _places(item, (*path, key))


@st.composite
def mutated(draw: st.DrawFn, valid: dict[str, Any]) -> dict[str, Any]:
    """A valid row with up to three values replaced, deleted, repeated, or put into another."""
    row = {"row": copy.deepcopy(valid)}
    for _ in range(draw(st.integers(0, 3))):
        places = list(_places(row["row"], ("row",)))
        if not places:
            break
        *way, last = draw(st.sampled_from(places))
        inside: Any = row
        for key in way:
            inside = inside[key]
        how = draw(st.sampled_from(["replace", "delete", "list", "object", "repeat"]))
        if how == "replace":
            inside[last] = draw(VALUES)
        elif how == "delete":
            del inside[last]
        elif how == "list":
            inside[last] = [inside[last]]
        elif how == "object":
            inside[last] = {draw(st.sampled_from(["id", "value", "record"])): inside[last]}
        else:
            inside[last] = [copy.deepcopy(inside[last]), inside[last]]
    return row["row"]


def rows_of(fmt: Format) -> st.SearchStrategy[Any]:
    if fmt.name in VALID:
        return mutated(VALID[fmt.name]) | VALUES
    keys = sorted(key.rpartition(".")[2] for key in fmt.needs | fmt.keys)
    needed = {key.rpartition(".")[2]: VALUES for key in fmt.needs}
    return st.fixed_dictionaries(needed, optional={key: VALUES for key in keys if key not in needed}) | VALUES


def arrays_of(fmt: Format, rows: list[Any]) -> dict[str, Any]:
    """One object of arrays, the rows in each."""
    return {key.partition(".")[0]: rows for key in sorted(fmt.needs)}


def check_pairs(pairs: Iterable[Any], path: Path) -> list[Any]:
    """What a reader gives, none of which is anything but a record or an error at its place."""
    found = []
    try:
        for row, got in pairs:
            assert isinstance(row, Row)
            if isinstance(got, DataError):
                assert got.file and (got.line is not None or got.index is not None or row.number == 0)
                assert got.rule and str(got)
            else:
                assert got is not None and not isinstance(got, BaseException)
            found.append(got)
    except DataError as error:
        assert error.rule and error.file
    return found


def read(name: str, data: bytes, suffix: str = ".json") -> list[Any]:
    """A file of these bytes, through a format's reader, "schema" or "detect"."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"in{suffix}"
        path.write_bytes(data)
        if name == "schema":
            return check_pairs(no_duplicates(record_pairs(path)), path)
        if name == "detect":
            try:
                found = detect(path)
            except DataError as error:
                assert error.file
                return []
            assert all(isinstance(f, Found) for f in found)
            return found
        fmt = FORMATS[name]
        return check_pairs(unique_ids(fmt.pairs(path)), path)


def skip_if_more_is_needed(name: str) -> Format:
    if FORMATS[name].required:
        pytest.skip("needs further files")
    return FORMATS[name]


def encodings(fmt: Format | None, rows: list[Any]) -> list[tuple[bytes, str]]:
    """The rows in every file that a format is read from, and what its name ends in."""
    if fmt is not None and fmt.holder == "object":
        return [(json.dumps(arrays_of(fmt, rows)).encode(), ".json")]
    texts = [json.dumps(row) for row in rows]
    return [(f"[{','.join(texts)}]".encode(), ".json"), ("\n".join(texts).encode(), ".jsonl")]


@pytest.mark.parametrize("name", sorted(VALID))
def test_the_rows_that_mutation_starts_from_are_valid(name: str) -> None:
    if name not in FORMATS:
        pytest.skip("no such format")
    for data, suffix in encodings(FORMATS[name], [VALID[name]]):
        (record,) = read(name, data, suffix)
        assert not isinstance(record, DataError)


def test_our_own_rows_that_mutation_starts_from_are_valid() -> None:
    data = "\n".join(json.dumps(row) for row in OWN).encode()
    assert [record.kind for record in read("schema", data)] == [row["kind"] for row in OWN]


@pytest.mark.parametrize("name", READABLE)
def test_mutated_rows(name: str) -> None:
    fmt = skip_if_more_is_needed(name)

    @settings(max_examples=40, deadline=None)
    @given(st.lists(rows_of(fmt), min_size=1, max_size=3))
    def run(rows: list[Any]) -> None:
        for data, suffix in encodings(fmt, rows):
            found = read(name, data, suffix)
            # none is lost: each row is a record or an error (a first line that is a list reads as an array)
            if fmt.name in VALID and isinstance(rows[0], dict):
                assert len(found) == len(rows)

    run()


def junk() -> st.SearchStrategy[bytes]:
    """Bytes of every kind: any, some that begin like a file that is read, and pieces of such a file."""
    heads = st.sampled_from([b"", b"PAR1", b"[", b"[{", b'{"a": [', b"\xef\xbb\xbf[", b"a\tb\n", b"null"])
    pieces = st.sampled_from(
        [b'{"id": "', b'"}', b"]", b"}", b",", b"\n", b":", b'"', b"\\u", b"\xff", b"1e"]
    )
    any_bytes = st.binary(max_size=60)
    return st.tuples(heads, st.lists(pieces | any_bytes, max_size=8)).map(lambda t: t[0] + b"".join(t[1]))


@pytest.mark.parametrize("name", [*READABLE, "schema", "detect"])
def test_random_bytes(name: str) -> None:
    if name in FORMATS:
        skip_if_more_is_needed(name)

    @settings(max_examples=40, deadline=None)
    @given(junk(), st.sampled_from([".json", ".jsonl", ".tsv", ".parquet"]))
    def run(data: bytes, suffix: str) -> None:
        read(name, data, suffix)

    run()


@pytest.mark.parametrize("name", READABLE)
def test_broken_files_of_valid_rows(name: str) -> None:
    fmt = skip_if_more_is_needed(name)
    row = VALID.get(name, dict.fromkeys(sorted(key.rpartition(".")[2] for key in fmt.needs), "x"))

    @settings(max_examples=40, deadline=None)
    @given(st.data())
    def run(draw: st.DataObject) -> None:
        data, suffix = draw.draw(st.sampled_from(encodings(fmt, [row, row])))
        at = draw.draw(st.integers(0, len(data)))
        read(
            name,
            data[:at] + draw.draw(st.binary(max_size=3)) + data[at + draw.draw(st.integers(0, 9)) :],
            suffix,
        )

    run()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(OWN).flatmap(mutated) | VALUES, min_size=1, max_size=3))
def test_mutated_records_of_our_own(rows: list[Any]) -> None:
    assert len(read("schema", "\n".join(json.dumps(row) for row in rows).encode())) == len(rows)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([*VALID.values(), *OWN]).flatmap(mutated) | VALUES, min_size=1, max_size=3))
def test_detection_of_mutated_rows(rows: list[Any]) -> None:
    for data, suffix in encodings(None, rows):
        read("detect", data, suffix)
    read("detect", json.dumps({"annotations": rows}).encode())


@pytest.mark.parametrize("kind", [["example"], {}])
def test_detection_of_a_kind_that_is_no_name(kind: Any) -> None:
    assert read("detect", json.dumps({"kind": kind, "conversations": []}).encode())[0].name == "llava"


@pytest.mark.parametrize("name", [n for n in READABLE if FORMATS[n].holder == "rows"])
@pytest.mark.parametrize(
    "cell", [b"\xff\x89PNG", {"bytes": b"\xff", "path": None}, [b"a"], [1, 2], 1.5, None]
)
def test_parquet_cells_of_other_kinds(name: str, cell: Any, tmp_path: Path) -> None:
    fmt = skip_if_more_is_needed(name)
    path = tmp_path / "in.parquet"
    for key in sorted(fmt.needs | fmt.keys):
        row = VALID.get(name, dict.fromkeys(sorted(fmt.needs), "x")) | {key: cell}
        pq.write_table(pa.Table.from_pylist([row, row]), path)
        found = check_pairs(unique_ids(fmt.pairs(path)), path)
        assert fmt.name not in VALID or len(found) == 2


def _encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    Pil.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


PICTURES = [_encoded(kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "ICO", "DDS")]


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(PICTURES),
    st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=4)), max_size=5),
)
def test_damaged_pictures(data: bytes, changes: list[tuple[int, bytes]]) -> None:
    changed = bytearray(data)
    for at, new in changes:
        changed[at % len(data) : at % len(data) + len(new)] = new
    image = Image(id="i", data=bytes(changed))
    for ask in (lambda i, root: open_image(i, root, max_pixels=10**6), inspect_image):
        try:
            ask(image, None)
        except DataError as error:
            assert error.key == "image" and error.mend
