from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.formats import aokvqa
from data.jsonl import DataError, write_json
from data.schema import Example, Facts, Image, Message, Prompt
from tests.data.test_formats_coco import check_pairs, mutated, spoiled

LETTER = "Reply with the letter of the right option alone."
COT = "First explain how you decide, then end with the letter of the right option."


def row(**changes: Any) -> dict[str, Any]:
    return {
        "split": "train",
        "image_id": 299207,
        "question_id": "22MexNkBPpdZGX6sxbxVBH",
        "question": "What is the man by the bags awaiting?",
        "choices": ["skateboarder", "train", "delivery", "cab"],
        "correct_choice_idx": 3,
        "direct_answers": ["ride", "bus", "taxi"],
        "difficult_direct_answer": False,
        "rationales": ["A cab would stop here", "He has bags.", "He has bags."],
    } | changes


def other(**changes: Any) -> dict[str, Any]:
    return row(
        question_id="2",
        question=" Is it day?\n",
        choices=["no", " yes"],
        correct_choice_idx=1,
        rationales=["The sun is up!", "He has bags."],
        **changes,
    )


def read(tmp_path: Path, *rows: Any, form: str = "letter", **options: str) -> list[Example]:
    write_json(tmp_path / "in.json", list(rows))
    return aokvqa.read(tmp_path / "in.json", strict=True, options={"form": form, **options})


def read_prompts(tmp_path: Path, *rows: Any, **options: str) -> list[Prompt]:
    write_json(tmp_path / "in.json", list(rows))
    return aokvqa.PROMPTS.read(tmp_path / "in.json", strict=True, options=options)


IMAGE = Image(id="000000299207.jpg", path="000000299207.jpg")
FIRST = "What is the man by the bags awaiting?\nA. skateboarder\nB. train\nC. delivery\nD. cab\n"
SECOND = "Is it day?\nA. no\nB. yes\n"


def turns(*texts: str) -> list[Message]:
    return [Message(role="assistant" if i % 2 else "user", content=text) for i, text in enumerate(texts)]


def test_the_questions_of_an_image_are_one_conversation(tmp_path: Path) -> None:
    elsewhere = row(image_id=7, question_id="3", split="val")
    together, alone = read(tmp_path, row(), elsewhere, other())
    assert together == Example(
        id="299207",
        image=IMAGE,
        messages=turns(FIRST + LETTER, "D", SECOND + LETTER, "B"),
        task="multiple_choice",
        facts=Facts(rationales=["A cab would stop here", "He has bags.", "The sun is up!"]),
        source="a_okvqa",
        split="train",
    )
    assert alone == Example(
        id="7",
        image=Image(id="000000000007.jpg", path="000000000007.jpg"),
        messages=turns(FIRST + LETTER, "D"),
        task="multiple_choice",
        facts=Facts(rationales=["A cab would stop here", "He has bags."], answer="D. cab"),
        source="a_okvqa",
        split="val",
    )


def test_chain_of_thought_ends_with_the_letter(tmp_path: Path) -> None:
    (got,) = read(tmp_path, row(), other(), form="cot")
    assert got.messages == turns(
        *(FIRST + COT, "A cab would stop here. So the right option is D."),
        *(SECOND + COT, "The sun is up! So the right option is B."),
    )


def test_a_prompt_a_question(tmp_path: Path) -> None:
    first, second = read_prompts(tmp_path, row(), other())
    assert first == Prompt(
        id="22MexNkBPpdZGX6sxbxVBH",
        image=IMAGE,
        question=FIRST + LETTER,
        facts=Facts(rationales=["A cab would stop here", "He has bags."], answer="D. cab"),
        answer_type="D",
        source="a_okvqa",
        split="train",
    )
    assert (second.id, second.answer_type) == ("2", "B")
    assert second.facts == Facts(rationales=["The sun is up!", "He has bags."], answer="B. yes")
    (reasoned, _) = read_prompts(tmp_path, row(), other(), form="cot")
    assert reasoned == first.model_copy(update={"question": FIRST + COT})


def test_names_of_images_follow_a_pattern(tmp_path: Path) -> None:
    pattern = "{split}2017/{id:012d}.jpg"
    # an image of the same number in another split is another one
    one, two = read(tmp_path, row(), other(split="val"), image_name=pattern)
    assert [e.image.path for e in (one, two) if e.image] == [
        "train2017/000000299207.jpg",
        "val2017/000000299207.jpg",
    ]
    assert [e.id for e in (one, two)] == ["299207", "299207#2"]
    bare = row()
    del bare["split"]
    assert read(tmp_path, bare)[0].split is None
    with pytest.raises(DataError, match="missing, and the images' names hold it") as caught:
        read(tmp_path, bare, image_name=pattern)
    assert (caught.value.index, caught.value.key) == (0, "split")
    for wrong in ("a.jpg", "{id}{subtype}", "{id:s}"):
        with pytest.raises(DataError) as caught:
            read(tmp_path, row(), image_name=wrong)
        assert caught.value.key == "options.image_name" and "{split}" in caught.value.mend
    with pytest.raises(DataError, match="unknown form 'long'; use letter or cot"):
        read(tmp_path, row(), form="long")


@pytest.mark.parametrize(
    ("changes", "key", "rule"),
    [
        ({"correct_choice_idx": None}, "correct_choice_idx", "question of split 'train' has no answer"),
        ({"correct_choice_idx": 4}, "correct_choice_idx", "no option 4"),
        ({"correct_choice_idx": -1}, "correct_choice_idx", "no option -1"),
        ({"correct_choice_idx": True}, "correct_choice_idx", "true or false, where a whole"),
        ({"correct_choice_idx": "3"}, "correct_choice_idx", "a string, where a whole"),
        ({"choices": ["one"]}, "choices", "1 options, where 2 to 4"),
        ({"choices": list("abcde")}, "choices", "5 options, where 2 to 4"),
        ({"choices": ["a", "b", 3, "d"]}, "choices.2", "no text"),
        ({"choices": ["a", " ", "c", "d"]}, "choices.1", "no text"),
        ({"choices": "abcd"}, "choices", "a string, where a list"),
        ({"rationales": []}, "rationales", "none"),
        ({"rationales": ["why", None]}, "rationales.1", "no text"),
        ({"image_id": "7"}, "image_id", "a string, where a whole"),
        ({"question": ""}, "question", "is empty"),
        ({"question_id": None}, "question_id", "null, where"),
        ({"question_id": "2"}, "question_id", "question '2' stands at record 1 already"),
        ({"split": 7}, "split", "a whole number, where a string"),
    ],
)
def test_bad_rows_name_their_index_key_and_rule(
    tmp_path: Path, changes: dict[str, Any], key: str, rule: str
) -> None:
    for reading in (read, read_prompts):
        with pytest.raises(DataError) as caught:
            reading(tmp_path, other(), row(**changes))
        assert str(caught.value).startswith(f"{tmp_path / 'in.json'}[1]: {key}: ")
        assert rule in caught.value.rule and caught.value.mend


def test_a_test_split_is_told_as_one(tmp_path: Path) -> None:
    hidden = row(split="test")
    del hidden["correct_choice_idx"], hidden["rationales"]
    with pytest.raises(DataError, match=r"of split 'test' has no answer; take the train or val file"):
        read(tmp_path, hidden)


def test_a_bad_row_costs_its_question_alone(tmp_path: Path) -> None:
    rows = [row(), other(), row(question_id="3", choices=[])]
    write_json(tmp_path / "in.json", rows)
    (_, error), (place, got) = aokvqa.EXAMPLES.pairs(tmp_path / "in.json")
    assert isinstance(error, DataError) and (error.index, error.key) == (2, "choices")
    assert isinstance(got, Example) and len(got.messages) == 4
    # what a rejects file would hold, were the image missing
    assert place.index == 0 and place.raw == rows[:2]


def test_parquet_with_what_json_lacks(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "in.parquet"
    parquet.write_table(arrow.Table.from_pylist([row(), other()]), path)
    (got,) = aokvqa.read(path, strict=True)
    assert [m.content for m in got.messages[1::2]] == ["D", "B"]
    parquet.write_table(arrow.Table.from_pylist([row(question=b"What?")]), path)
    with pytest.raises(DataError, match="a bytes, where a string is needed") as caught:
        aokvqa.read(path, strict=True)
    assert (caught.value.index, caught.value.key) == (0, "question")


@settings(max_examples=50, deadline=None)
@given(
    data=st.data(),
    change=st.sampled_from([mutated, spoiled]),
    pattern=st.sampled_from(["{id}", "{split}{id}"]),
)
def test_only_data_errors_come_out(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, change: Any, pattern: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "aokvqa.json"
    path.write_bytes(change(data, [row(), other(), row(image_id=7, question_id=3)]))
    check_pairs(aokvqa.EXAMPLES, path, Example, image_name=pattern, form="cot")
    check_pairs(aokvqa.PROMPTS, path, Prompt, image_name=pattern)
