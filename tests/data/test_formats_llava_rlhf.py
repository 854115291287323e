from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data.formats import llava_rlhf as rlhf
from data.jsonl import DataError, read_json, write_json
from data.schema import Facts, Image, Message, Preference, Prompt, Response


def preference(**changes: Any) -> dict[str, Any]:
    return {
        "id": "000000000009",
        "image": "000000000009.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nQ1"},
            {"from": "gpt", "value": "A1"},
            {"from": "human", "value": "Q2"},
        ],
        "output_1": {"from": "llava", "value": "first"},
        "output_2": {"from": "gpt", "value": "second"},
        "preference": 2,
        "hallucination": False,
    } | changes


def prompt(**changes: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nQ?"}, {"from": "gpt", "value": "A"}]
    return {"id": "1", "image": "000000000001.jpg", "conversations": turns} | changes


def read(tmp_path: Path, *rows: Any) -> list[Preference]:
    write_json(tmp_path / "in.json", list(rows))
    return rlhf.read(tmp_path / "in.json", strict=True)


def read_prompts(tmp_path: Path, *rows: Any) -> list[Prompt]:
    write_json(tmp_path / "in.json", list(rows))
    return rlhf.read_prompts(tmp_path / "in.json", strict=True)


def test_preference_two_is_the_second_response(tmp_path: Path) -> None:
    one, two = read(tmp_path, preference(preference=1), preference())
    assert [r.text for r in two.responses] == ["first", "second"]
    assert (one.preferred, two.preferred) == (0, 1)
    assert two.responses[0].model == "llava" and two.responses[1].model is None
    assert [m.content for m in two.messages] == ["Q1", "A1", "Q2"]


def test_published_rows_round_trip(tmp_path: Path) -> None:
    held_place = [*preference()["conversations"], {"from": "gpt", "value": "replaced"}]
    bare = {k: v for k, v in preference(id="b").items() if k != "hallucination"}
    rows = [
        preference(),
        preference(preference=1, hallucination=True),
        preference(conversations=held_place),
        bare,
    ]
    records = read(tmp_path, *rows)
    assert [m.content for m in records[2].messages] == ["Q1", "A1", "Q2"]
    rlhf.write(tmp_path / "out.json", records)
    assert read_json(tmp_path / "out.json") == rows
    wrapped = preference(conversations=[held_place])
    assert read(tmp_path, wrapped)[0].messages == records[2].messages


def test_our_pairs_round_trip_in_what_the_format_holds(tmp_path: Path) -> None:
    ours = Preference(
        id="x",
        image=Image(id="a.png", path="a.png"),
        messages=[Message(role="user", content="Q")],
        responses=[Response(text="a", model="m"), Response(text="b")],
        choices={"hallucination": None, "helpfulness": 1},
    )
    rlhf.write(tmp_path / "out.json", [ours])
    (back,) = rlhf.read(tmp_path / "out.json")
    assert back == ours.model_copy(update={"choices": {"overall": 1}})


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"preference": 0}, "preference"),
        ({"preference": "1"}, "preference"),
        ({"preference": True}, "preference"),
        ({"output_1": "text"}, "output_1"),
        ({"output_2": {"from": "gpt"}}, "output_2.value"),
        ({"hallucination": "no"}, "hallucination"),
    ],
)
def test_bad_preferences_name_the_key(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, preference(**changes))
    assert caught.value.key == key and caught.value.index == 0


def test_ties_and_three_responses_cannot_be_written(tmp_path: Path) -> None:
    (record,) = read(tmp_path, preference())
    with pytest.raises(DataError, match="a tie"):
        rlhf.write(tmp_path / "o.json", [record.model_copy(update={"choices": {"overall": None}})])
    three = record.model_copy(update={"responses": [Response(text=t) for t in "abc"]})
    with pytest.raises(DataError, match="3 responses"):
        rlhf.write(tmp_path / "o.json", [three])


def test_caption_types_and_length_classes(tmp_path: Path) -> None:
    rows = [prompt(caption_type=n) for n in range(1, 8)] + [prompt()]
    got = read_prompts(tmp_path, *rows)
    assert [p.answer_type for p in got] == ["general", "A", "B", "C", "D", "no", "yes", "general"]
    assert [p.question for p in got] == ["Q?"] * 8
    assert len({p.id for p in got}) == 8
    # the thesis's -10, -40, +2.5 as factors of -10 and of -5
    bonuses = [1.0, 4.0, -0.25, 2, 8, -0.5, None]
    got = read_prompts(tmp_path, *(prompt(length_bonus=b) for b in bonuses))
    assert [p.length_class for p in got] == ["general", "detail", "complex"] * 2 + ["general"]
    for changes in ({"caption_type": 8}, {"caption_type": 0}, {"caption_type": "no"}, {"length_bonus": "x"}):
        with pytest.raises(DataError) as caught:
            read_prompts(tmp_path, prompt(**changes))
        assert caught.value.key in changes


def test_captions_in_a_row_are_facts(tmp_path: Path) -> None:
    general, choice = read_prompts(
        tmp_path, prompt(captions=["c1", "c2"]), prompt(captions=["why"], caption_type=3)
    )
    assert general.facts == Facts(captions=["c1", "c2"])
    assert choice.facts == Facts(rationales=["why"])


def test_captions_file_adds_facts_by_image(tmp_path: Path) -> None:
    path = tmp_path / "image_to_caption.json"
    write_json(path, {"1.jpg": ["c1", "c2"], "aok_1.jpg": ["r1"], "2.jpg": ["d"]})
    captions = rlhf.read_captions(path)

    def ask(name: str, image: str | None, **more: Any) -> Prompt:
        picture = Image(id=image, path=image) if image else None
        return Prompt(id=name, image=picture, question="Q?", **more)

    asked = [
        ask("a", "1.jpg"),
        ask("b", "train/1.jpg", answer_type="B"),
        ask("c", "2.jpg", answer_type="B"),  # no rationales: its captions
        ask("d", "1.jpg", answer_type="yes", facts=Facts(captions=["c2", "own"])),
        ask("e", None),
        ask("f", "9.jpg"),
    ]
    got = rlhf.add_captions(asked, captions, "file")
    assert [p.facts for p in got] == [
        Facts(captions=["c1", "c2"]),
        Facts(rationales=["r1"]),
        Facts(captions=["d"]),
        Facts(captions=["c2", "own", "c1"]),
        Facts(),
        Facts(),
    ]
    assert asked[0].facts == Facts()  # the given records are left alone
    with pytest.raises(DataError, match="no caption for any of the 1 images"):
        rlhf.add_captions(asked[4:], captions, "file")
    write_json(path, {"1.jpg": "c1"})
    with pytest.raises(DataError) as caught:
        rlhf.read_captions(path)
    assert caught.value.key == "1.jpg"
