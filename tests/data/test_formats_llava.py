from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.formats import llava
from data.jsonl import DataError, read_json, write_json
from data.schema import Example, Image, Message

TEXT = st.text(max_size=20).filter(lambda t: "<image>" not in t)


def row(**changes: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
    return {"id": "000000000009", "image": "coco/000000000009.jpg", "conversations": turns} | changes


def turns(*values: str) -> list[dict[str, str]]:
    return [{"from": "gpt" if i % 2 else "human", "value": v} for i, v in enumerate(values)]


def read(tmp_path: Path, *rows: Any) -> list[Example]:
    write_json(tmp_path / "in.json", list(rows))
    return llava.read(tmp_path / "in.json", strict=True)


def test_a_row_becomes_an_example(tmp_path: Path) -> None:
    (got,) = read(tmp_path, row(conversations=turns("<image>\nQ1", "A1", "Q2", "A2"), id=9))
    assert got.id == "9"
    assert got.image == Image(id="coco/000000000009.jpg", path="coco/000000000009.jpg")
    assert [(m.role, m.content) for m in got.messages] == [
        ("user", "Q1"),
        ("assistant", "A1"),
        ("user", "Q2"),
        ("assistant", "A2"),
    ]


@pytest.mark.parametrize("text", ["<image>\nQ", "Q\n<image>", "<image>Q", "Q<image>"])
def test_the_marker_goes_wherever_it_stands(tmp_path: Path, text: str) -> None:
    (got,) = read(tmp_path, row(conversations=turns(text, "A")))
    assert got.messages[0].content == "Q"


def test_published_files_round_trip_to_the_byte_of_their_values(tmp_path: Path) -> None:
    system = [{"from": "system", "value": "Be brief."}, *turns("<image>\n Q \n", "\nA ")]
    text_only = {"id": "t", "conversations": turns("Hello", "Hi")}
    rows = [
        row(),
        row(conversations=turns("<image>\nOther?", "B")),
        row(conversations=system, id="s"),
        text_only,
    ]
    records = read(tmp_path, *rows)
    assert [r.id for r in records] == ["000000000009", "000000000009#2", "s", "t"]
    assert llava.write(tmp_path / "out.json", records) == 4
    assert read_json(tmp_path / "out.json") == rows
    llava.write(tmp_path / "out.jsonl", records)
    assert [json.loads(x) for x in (tmp_path / "out.jsonl").read_text().splitlines()] == rows
    assert llava.read(tmp_path / "out.jsonl") == records


@settings(max_examples=50, deadline=None)
@given(question=TEXT, answer=TEXT, system=st.none() | TEXT, pictured=st.booleans())
def test_our_examples_round_trip(
    tmp_path_factory: pytest.TempPathFactory, question: str, answer: str, system: str | None, pictured: bool
) -> None:
    messages = [Message(role="system", content=system)] if system is not None else []
    messages += [Message(role="user", content=question), Message(role="assistant", content=answer)]
    image = Image(id="a/b.png", path="a/b.png") if pictured else None
    record = Example(id="x", image=image, messages=messages)
    path = tmp_path_factory.getbasetemp() / "example.json"
    llava.write(path, [record])
    assert llava.read(path, strict=True) == [record]


@pytest.mark.parametrize(
    ("changes", "key", "rule"),
    [
        ({"conversations": None}, "conversations", "null, where a list"),
        ({"conversations": []}, "", "messages is empty"),
        ({"conversations": turns("<image>\nQ")}, "", "last turn"),
        ({"conversations": [{"from": "gpt", "value": "A"}]}, "", "starting with 'user'"),
        ({"conversations": [{"from": "bot", "value": "A"}]}, "conversations.0.from", "'bot'"),
        ({"conversations": [{"from": "human"}]}, "conversations.0.value", "missing"),
        ({"conversations": ["Q"]}, "conversations.0", "not an object"),
        ({"conversations": turns("<image>\n<image>\nQ", "A")}, "conversations.0.value", "elsewhere"),
        ({"conversations": turns("Q", "A", "<image>\nQ", "A")}, "conversations.2.value", "elsewhere"),
        ({"image": None}, "conversations.0.value", "names no image"),
        ({"image": ["a.jpg", "b.jpg"]}, "image", "2 images"),
        ({"image": 7}, "image", "a whole number, where a string"),
        ({"image": "../a.jpg"}, "image", "inside an image root"),
        ({"id": True}, "id", "true or false"),
    ],
)
def test_bad_rows_name_their_index_key_and_rule(
    tmp_path: Path, changes: dict[str, Any], key: str, rule: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, row(), row(**changes))
    assert caught.value.index == 1 and str(caught.value).startswith(f"{tmp_path / 'in.json'}[1]: ")
    assert (caught.value.key or "") == key
    assert rule in caught.value.rule and caught.value.mend


def test_a_missing_id_is_the_place_in_the_file(tmp_path: Path) -> None:
    plain = {k: v for k, v in row().items() if k != "id"}
    assert [r.id for r in read(tmp_path, row(), plain)] == ["000000000009", "in-1"]


def test_what_the_format_cannot_hold_is_an_error(tmp_path: Path) -> None:
    (record,) = read(tmp_path, row())
    marked = [Message(role="user", content="an <image> tag"), record.messages[1]]
    with pytest.raises(DataError, match="<image>") as caught:
        llava.write(tmp_path / "out.json", [record, record.model_copy(update={"messages": marked})])
    assert caught.value.index == 1 and not (tmp_path / "out.json").exists()
    inline = record.model_copy(update={"image": Image(id="i", data=b"x")})
    with pytest.raises(DataError, match="as bytes"):
        llava.write(tmp_path / "out.json", [inline])
