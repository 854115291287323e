from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data.formats import trl
from data.jsonl import DataError, write_rows
from data.schema import Example, Facts, Image, Message, Preference, Response

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
        ({"images": [{"bytes": "é"}]}, "images.bytes"),
        ({"images": [{"bytes": 3}]}, "images.bytes"),
        ({"images": [{"bytes": "AA==", "path": 3}]}, "images.path"),
        ({"images": [{"path": None}]}, "images.path"),
        ({"source": 3}, "source"),
        ({"annotator": ["me"]}, "annotator"),
        ({"facts": ["c"]}, "facts"),
        ({"facts": {"capt": ["c"]}}, "facts.capt"),
        ({"facts": {"captions": "c"}}, "facts.captions"),
        ({"facts": '{"captions": ["\\ud83d"]}'}, "facts.captions.0"),
        ({"meta": "{"}, "meta"),
        ({"meta": "[]"}, "meta"),
        ({"meta": "[" * 5000}, "meta"),
        ({"choices": {"overall": 1}}, "choices"),
        ({"choices": '{"overall": null}'}, "choices"),
        ({"choices": {"overall": "first"}}, "choices.overall"),
        ({"choices": {"overall": 2}}, None),
    ],
)
def test_bad_rows_name_the_line_and_key(tmp_path: Path, changes: dict[str, Any], key: str | None) -> None:
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


FULL = Example(
    id="e",
    image=Image(id="a.png", path="a.png"),
    messages=[Message(role=r, content=c) for r, c in (("user", "Q"), ("assistant", "A"))] * 2,
    task="t",
    facts=Facts(captions=["c1", "c2"], answer="", knowledge=["k"]),
    answer="B",
    source="s",
    split="val",
)


def test_completions_end_with_the_last_answer(tmp_path: Path) -> None:
    plain = Example(id="n", messages=FULL.messages[:2])
    assert trl.write_completions(tmp_path / "o.jsonl", [FULL, plain]) == 2
    first, second = map(json.loads, (tmp_path / "o.jsonl").read_text().splitlines())
    assert first == {
        "id": "e",
        "images": ["a.png"],
        "prompt": [USER | {"content": "Q"}, *said("A"), USER | {"content": "Q"}],
        "completion": said("A"),
        "source": "s",
        "split": "val",
        "task": "t",
        "answer": "B",
        "facts": {"captions": ["c1", "c2"], "answer": "", "knowledge": ["k"]},
    }
    assert set(second) == {"id", "images", "prompt", "completion"}
    assert trl.read_completions(tmp_path / "o.jsonl", strict=True) == [FULL, plain]
    write_rows(tmp_path / "i.jsonl", [{"image": "a.png", "prompt": "<image>Q", "completion": "A"}])
    (got,) = trl.read_completions(tmp_path / "i.jsonl", strict=True)
    assert got.messages == plain.messages and got.image == FULL.image


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"prompt": "Q"}, "completion"),
        ({"completion": "A"}, "prompt"),
        ({"prompt": "Q", "completion": [USER]}, "completion"),
        ({"prompt": "Q", "completion": []}, "completion"),
        ({"prompt": "Q", "completion": "<image>"}, "completion"),
        ({"prompt": "Q<image>", "completion": "A"}, "prompt"),
        ({"prompt": [USER, *said("A")], "completion": "A"}, None),
    ],
)
def test_bad_completions_name_the_key(row: dict[str, Any], key: str | None, tmp_path: Path) -> None:
    write_rows(tmp_path / "i.jsonl", [row])
    with pytest.raises(DataError) as caught:
        trl.read_completions(tmp_path / "i.jsonl", strict=True)
    assert (caught.value.line, caught.value.key) == (1, key)


def test_further_columns_round_trip(tmp_path: Path) -> None:
    trl.write_messages(tmp_path / "e.jsonl", [FULL])
    assert trl.read_messages(tmp_path / "e.jsonl", strict=True) == [FULL]
    ours = Preference(
        id="x",
        messages=FULL.messages[:1],
        responses=[Response(text="good"), Response(text="bad")],
        choices={"hallucination": None, "helpfulness": 0},
        annotator="me",
        facts=Facts(rationales=["r"]),
        source="s",
        split="train",
        meta={"deep": {"n": [1, None, "é"]}},
    )
    named = ours.model_copy(update={"id": "y", "choices": {"hallucination": 0}})
    trl.write(tmp_path / "p.jsonl", [ours, named])
    row = json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])
    assert row["meta"] == '{"deep": {"n": [1, null, "é"]}}' and row["facts"] == {"rationales": ["r"]}
    assert trl.read(tmp_path / "p.jsonl", strict=True) == [ours, named]
    assert set(row) <= trl.PREFERENCES.keys
    objects = row | {"choices": {"hallucination": None, "helpfulness": 0}, "meta": ours.meta}
    assert read(tmp_path, objects) == [ours]


def test_verdicts_turn_round_with_the_pair(tmp_path: Path) -> None:
    ours = Preference(
        id="x",
        messages=FULL.messages[:1],
        responses=[Response(text="worse"), Response(text="better")],
        choices={"hallucination": 1, "helpfulness": 0, "overall": None},
    )
    trl.write(tmp_path / "p.jsonl", [ours])
    (back,) = trl.read(tmp_path / "p.jsonl", strict=True)
    assert [r.text for r in back.responses] == ["better", "worse"] and back.preferred == 0
    assert back.choices == {"hallucination": 0, "helpfulness": 1, "overall": None}
    with pytest.raises(DataError, match=r"meta: cannot be JSON"):
        trl.write(tmp_path / "p.jsonl", [ours.model_copy(update={"meta": {"x": float("nan")}})])


def parquet(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    return tmp_path / "in.parquet"


def test_parquet_has_bytes_and_nulls(tmp_path: Path) -> None:
    first = {"images": [{"bytes": b"\xffraw", "path": "a.png"}], "prompt": [USER], "chosen": said("A"),
             "rejected": said("B"), "facts": {"captions": ["c"], "answer": None}, "source": "s"}  # fmt: skip
    second = first | {"images": [], "facts": None, "source": None}
    third = first | {"images": [{"bytes": None, "path": "b.png"}], "facts": {"captions": None, "answer": "B"}}
    fourth = first | {"images": [{"bytes": b"x", "path": None}]}
    got = trl.read(parquet(tmp_path, [first, second, third, fourth]), strict=True)
    assert [p.image for p in got] == [
        Image(id="a.png", data=b"\xffraw"),
        None,
        Image(id="b.png", path="b.png"),
        Image(id="in-3", data=b"x"),
    ]
    assert [p.facts for p in got[:3]] == [Facts(captions=["c"]), Facts(), Facts(answer="B")]
    assert [p.source for p in got[:2]] == ["s", None]


@pytest.mark.parametrize("key", ["id", "prompt", "chosen", "facts", "meta", "choices", "source"])
def test_bytes_in_the_place_of_texts_are_refused(key: str, tmp_path: Path) -> None:
    row = {"prompt": "Q", "chosen": "A", "rejected": "B"} | {key: b"Q"}
    ((_, error),) = trl.PREFERENCES.pairs(parquet(tmp_path, [row]))
    assert isinstance(error, DataError) and (error.index, error.key) == (0, key)
    assert "bytes" in error.rule


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "bytes", "path", "x"]), inner)
    ),
    max_leaves=6,
)
KEYS = ["id", "image", "images", "prompt", "chosen", "completion", "messages", "facts", "choices", "meta",
        "answer"]  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3))
def test_nothing_but_data_errors_comes_out(changes: dict[str, Any]) -> None:
    turns = [USER, *said("A")]
    row = {"images": ["a.png"], "prompt": [USER], "chosen": said("A"), "rejected": said("B"),
           "completion": said("A"), "messages": turns} | changes  # fmt: skip
    for fmt in (trl.PREFERENCES, trl.CONVERSATIONS, trl.COMPLETIONS):
        assert fmt.parse is not None
        try:
            got = fmt.parse(trl.Row("f", index=0), row)
        except DataError as error:
            assert error.rule
        else:
            assert got.kind == fmt.kind


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 400), new=st.binary(max_size=4))
@example(at=0, new=b"PAR1")
@example(at=0, new=b"\x1f\x8b")
def test_damaged_bytes_are_data_errors(at: int, new: bytes, tmp_path: Path) -> None:
    row = {"images": [{"bytes": "AAAA", "path": "a"}], "prompt": [USER], "chosen": said("A"),
           "rejected": said("B"), "facts": {"captions": ["c"]}, "choices": '{"overall": 0}'}  # fmt: skip
    whole = json.dumps(row).encode()
    (tmp_path / "x.jsonl").write_bytes(whole[:at] + new + whole[at + len(new) :])
    try:
        found = list(trl.PREFERENCES.pairs(tmp_path / "x.jsonl"))
    except DataError as error:
        # the first bytes are now those of another kind of file, such as Parquet, which is damaged
        assert at == 0 and error.file == str(tmp_path / "x.jsonl")
        return
    for _, got in found:
        assert isinstance(got, DataError | Preference)
        assert isinstance(got, Preference) or got.line is not None
