from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.formats import mmhal
from data.formats.mmhal import MmhalItem
from data.jsonl import DataError, read_json, write_json
from data.schema import Facts, Image, Prompt

ROW = {
    "question_type": "attribute",
    "question_topic": "chart",
    "image_id": "ab12",
    "image_src": "https://example.org/ab12.jpg",
    "image_content": ["Person", "Chair"],
    "question": "What colour is the chair?",
    "gt_answer": "It is red.",
    "model_answer": "",
}


def test_template_and_responses_round_trip_in_order(tmp_path: Path) -> None:
    rows = [ROW | {"image_id": str(i), "model_answer": f"é{i}"} for i in range(10)] + [ROW | {"gpt": 3}]
    write_json(tmp_path / "in.json", rows)
    items = mmhal.read(tmp_path / "in.json")
    assert [item.index for item in items] == list(range(11))
    assert mmhal.write(tmp_path / "out.json", items) == 11
    assert read_json(tmp_path / "out.json") == rows


def test_an_unanswered_template_needs_no_answers(tmp_path: Path) -> None:
    row = {k: v for k, v in ROW.items() if k != "model_answer"}
    write_json(tmp_path / "in.json", [row])
    assert mmhal.read(tmp_path / "in.json") == [MmhalItem(**ROW, index=0)]


@pytest.mark.parametrize(
    ("key", "value"), [("image_content", "Person"), ("gt_answer", None), ("question", 1)]
)
def test_no_item_is_dropped_since_its_place_is_its_type(tmp_path: Path, key: str, value: object) -> None:
    write_json(tmp_path / "in.json", [ROW] * 200 + [ROW | {key: value}])
    with pytest.raises(DataError) as caught:
        mmhal.read(tmp_path / "in.json")
    assert (caught.value.index, caught.value.key) == (200, key)


def test_questions_become_prompts_with_contents_and_human_answer_as_facts(tmp_path: Path) -> None:
    local = ROW | {"image_src": "images/b.png", "image_content": [], "model_answer": "Blue."}
    write_json(tmp_path / "in.json", [ROW, local])
    assert mmhal.read_prompts(tmp_path / "in.json") == [
        Prompt(
            id="0",
            image=Image(id="https://example.org/ab12.jpg", url="https://example.org/ab12.jpg"),
            question="What colour is the chair?",
            facts=Facts(objects=["Person", "Chair"], answer="It is red."),
            source="mmhal",
        ),
        Prompt(
            id="1",
            image=Image(id="images/b.png", path="images/b.png"),
            question="What colour is the chair?",
            facts=Facts(answer="It is red."),
            source="mmhal",
        ),
    ]


def test_a_bad_prompt_stands_at_its_index_and_moves_no_other_id(tmp_path: Path) -> None:
    write_json(tmp_path / "in.json", [ROW, ROW | {"image_src": "../b.png"}, ROW | {"question": None}, ROW])
    got = [found for _, found in mmhal.PROMPTS.pairs(tmp_path / "in.json")]
    assert [(e.index, e.key) for e in got if isinstance(e, DataError)] == [
        (1, "image_src"),
        (2, "question"),
    ]
    assert [p.id for p in got if isinstance(p, Prompt)] == ["0", "3"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


@settings(max_examples=50, deadline=None)
@given(key=st.sampled_from(sorted(ROW)), value=JSON, at=st.integers(0, 700), byte=st.binary(max_size=2))
def test_nothing_but_data_errors_comes_out(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object, at: int, byte: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated_mmhal.json"
    path.write_text(json.dumps([ROW, ROW | {key: value}, ROW]))
    got = [found for _, found in mmhal.PROMPTS.pairs(path)]
    assert len(got) == 3 and all(isinstance(found, Prompt | DataError) for found in got)
    assert isinstance(got[0], Prompt) and isinstance(got[2], Prompt)
    data = path.read_bytes()
    path.write_bytes(data[:at] + byte + data[at + 1 :])
    try:
        assert all(isinstance(found, Prompt | DataError) for _, found in mmhal.PROMPTS.pairs(path))
    except DataError as error:
        assert error.file == str(path)
