from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from data.formats import trl
from data.jsonl import DataError, write_rows
from data.schema import Example, Image, Message, Preference, Response

USER = {"role": "user", "content": "Q?"}


def said(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def read(tmp_path: Path, *rows: Any) -> list[Preference]:
    write_rows(tmp_path / "in.jsonl", rows)
    return trl.read(tmp_path / "in.jsonl", strict=True)


def test_strings_messages_and_parts_mean_the_same(tmp_path: Path) -> None:
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "Q?"}]
    rows = [
        {"images": ["a.png"], "prompt": "Q?", "chosen": "good", "rejected": "bad"},
        {"image": "a.png", "prompt": [USER], "chosen": said("good"), "rejected": said("bad")},
        {
            "images": [{"path": "a.png", "bytes": None}],
            "prompt": [{"role": "user", "content": parts}],
            "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "good"}]}],
            "rejected": said("bad"),
        },
        {"images": "a.png", "chosen": [USER, *said("good")], "rejected": [USER, *said("bad")]},
    ]
    for number, got in enumerate(read(tmp_path, *rows)):
        assert got.id == f"in-{number}"
        assert got.image == Image(id="a.png", path="a.png")
        assert got.messages == [Message(role="user", content="Q?")]
        assert [r.text for r in got.responses] == ["good", "bad"] and got.preferred == 0


def test_the_marker_goes_from_the_first_user_turn(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "<image>\nQ?"}]
    rows = [
        {"images": ["a.png"], "prompt": prompt, "chosen": "good", "rejected": "bad"}
        for prompt in ("<image>\nQ?", "Q?<image>", turns, [{"role": "user", "content": "Q?\n<image>"}],
                       [{"role": "user", "content": [{"type": "text", "text": "<image>Q?"}]}])
    ]  # fmt: skip
    for got in read(tmp_path, *rows):
        assert got.messages[-1].content == "Q?"
    write_rows(tmp_path / "m.jsonl", [{"images": ["a.png"], "messages": [*turns, *said("A")]}])
    (example,) = trl.read_messages(tmp_path / "m.jsonl", strict=True)
    assert [m.content for m in example.messages] == ["S", "Q?", "A"]


@pytest.mark.parametrize(
    ("changes", "key", "rule"),
    [
        ({"images": [], "prompt": "<image>Q?"}, "prompt", "names no image"),
        ({"images": [], "prompt": [{"role": "user", "content": "<image>Q?"}]}, "prompt.0.content",
         "names no image"),
        ({"prompt": "<image>Q<image>"}, "prompt", "elsewhere"),
        ({"prompt": [USER, *said("A"), {"role": "user", "content": "<image>Q"}]}, "prompt.2.content",
         "elsewhere"),
        ({"chosen": "an <image>"}, "chosen", "elsewhere"),
        ({"rejected": said("an <image>")}, "rejected.0.content", "elsewhere"),
    ],
)  # fmt: skip
def test_a_marker_elsewhere_is_refused(tmp_path: Path, changes: dict[str, Any], key: str, rule: str) -> None:
    row = {"images": ["a.png"], "prompt": [USER], "chosen": said("good"), "rejected": said("bad")}
    with pytest.raises(DataError) as caught:
        read(tmp_path, row | changes)
    assert (caught.value.line, caught.value.key) == (1, key)
    assert rule in caught.value.rule


def test_a_marker_is_not_written(tmp_path: Path) -> None:
    turns = [Message(role="user", content="Q"), Message(role="assistant", content="an <image>")]
    with pytest.raises(DataError, match=r"messages\.1\.content: the text holds <image>"):
        trl.write_messages(tmp_path / "o.jsonl", [Example(id="x", messages=turns)])
    ours = Preference(id="x", messages=turns[:1], choices={"overall": 0},
                      responses=[Response(text="a"), Response(text="<image>")])  # fmt: skip
    with pytest.raises(DataError, match=r"responses\.1\.text: the text holds <image>"):
        trl.write(tmp_path / "o.jsonl", [ours])
    assert not (tmp_path / "o.jsonl").exists()


def test_preferences_round_trip_with_the_better_response_first(tmp_path: Path) -> None:
    ours = Preference(
        id="x",
        image=Image(id="inline", data=b"\x00\xffpng"),
        messages=[
            Message(role="system", content="S"),
            Message(role="user", content="Q1\n"),
            Message(role="assistant", content="A1"),
            Message(role="user", content="Q2"),
        ],
        responses=[Response(text="worse"), Response(text="better")],
        choices={"hallucination": 1},
    )
    assert trl.write(tmp_path / "o.jsonl", [ours]) == 1
    row = json.loads((tmp_path / "o.jsonl").read_text())
    assert row["chosen"] == said("better") and row["rejected"] == said("worse")
    assert base64.b64decode(row["images"][0]["bytes"]) == b"\x00\xffpng"
    (back,) = trl.read(tmp_path / "o.jsonl")
    want = {"responses": ours.responses[::-1], "choices": {"overall": 0}}
    assert back == ours.model_copy(update=want)
    trl.write(tmp_path / "p.jsonl", [back])
    assert json.loads((tmp_path / "p.jsonl").read_text()) == row


def test_conversations_round_trip(tmp_path: Path) -> None:
    turns = [Message(role="user", content="Q?"), Message(role="assistant", content=" A ")]
    images = [Image(id="a/b.png", path="a/b.png"), Image(id="http://h/x.png", url="http://h/x.png"), None]
    ours = [Example(id=str(i), image=image, messages=turns) for i, image in enumerate(images)]
    trl.write_messages(tmp_path / "o.jsonl", ours)
    assert trl.read_messages(tmp_path / "o.jsonl", strict=True) == ours


def test_equal_answers_stay_answers(tmp_path: Path) -> None:
    (got,) = read(tmp_path, {"chosen": [USER, *said("same")], "rejected": [USER, *said("same")]})
    assert [m.content for m in got.messages] == ["Q?"]
    assert [r.text for r in got.responses] == ["same", "same"]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"chosen": None}, "chosen"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"images": ["a", "b"]}, "images"),
        ({"images": ["/a"]}, "images"),
        ({"images": [{"bytes": "%%"}]}, "images.bytes"),
        ({"images": [7]}, "images"),
        ({"chosen": [USER]}, "chosen"),
        ({"chosen": said("a") + said("b")}, "chosen"),
        ({"prompt": [{"role": "user"}]}, "prompt.0.content"),
        ({"prompt": [{"role": "tool", "content": "x"}]}, "prompt.0.role"),
        ({"prompt": [{"role": "user", "content": [{"type": "video"}]}]}, "prompt.0.content.0.type"),
    ],
)
def test_bad_rows_name_the_line_and_key(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    row = {"images": ["a.png"], "prompt": [USER], "chosen": said("good"), "rejected": said("bad")}
    with pytest.raises(DataError) as caught:
        read(tmp_path, row, row | changes)
    assert (caught.value.line, caught.value.key) == (2, key)
    assert caught.value.mend


def test_trl_itself_takes_what_is_written(tmp_path: Path) -> None:
    data_utils = pytest.importorskip("trl.data_utils")
    ours = Preference(
        id="x",
        image=Image(id="a.png", path="a.png"),
        messages=[Message(role="user", content="Q?")],
        responses=[Response(text="a"), Response(text="b")],
        choices={"overall": 0},
    )
    trl.write(tmp_path / "o.jsonl", [ours])
    row = json.loads((tmp_path / "o.jsonl").read_text())
    assert data_utils.is_conversational(row)
    placed = data_utils.prepare_multimodal_messages(row["prompt"], images=row["images"])
    assert placed[0]["content"] == [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Q?"}]
