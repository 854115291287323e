from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.formats import vqa
from data.jsonl import DataError, write_json
from data.schema import Example, Facts, Image, Message, Prompt
from tests.data.test_formats_coco import check_pairs, mutated, spoiled

REQUEST = "Please reply with yes or no only."


def question(number: Any, text: Any, image: Any = None) -> dict[str, Any]:
    return {"image_id": number // 1000 if image is None else image, "question": text, "question_id": number}


def annotation(number: Any, answer: str, kind: str = "yes/no") -> dict[str, Any]:
    answers = [{"answer": answer, "answer_confidence": "maybe", "answer_id": i} for i in range(1, 11)]
    about = {"question_type": "is the", "multiple_choice_answer": answer, "answers": answers}
    return about | {"image_id": 1, "answer_type": kind, "question_id": number}


#: question id, text, answer; None: a question of another kind
ASKED = [
    (9000, "Is it raining?", "yes"),
    (25000, "Is the giraffe eating?", "yes"),
    (9001, "What colour is it? ", None),
    (9002, "Is there bread?\n", "yes"),
    (25001, "Is it dark?", "no"),
    (9003, "Is there meat?", "no"),
    (25002, "Are there two?", "yes"),
]


def questions_file(**changes: Any) -> dict[str, Any]:
    rows = [question(number, text) for number, text, _ in ASKED]
    head = {"info": {"year": 2014}, "task_type": "Open-Ended", "data_subtype": "train2014"}
    return head | {"questions": rows} | changes


def annotations_file(**changes: Any) -> dict[str, Any]:
    rows = [annotation(n, a) if a else annotation(n, "green", "other") for n, _, a in ASKED]
    return {"info": {"year": 2014}, "annotations": rows[::-1], "data_subtype": "train2014"} | changes


def write(tmp_path: Path, questions: Any = None, annotations: Any = None) -> tuple[str, str]:
    paths = tmp_path / "questions.json", tmp_path / "annotations.json"
    for path, value in zip(paths, (questions or questions_file(), annotations or annotations_file())):
        write_json(path, value)
    return str(paths[0]), str(paths[1])


def first_error(questions: str, annotations: str, **options: str) -> DataError:
    with pytest.raises(DataError) as caught:
        vqa.EXAMPLES.read(questions, strict=True, options={"annotations": annotations, **options})
    return caught.value


def image(name: str) -> Image:
    return Image(id=name, path=name)


def turns(*texts: str) -> list[Message]:
    return [Message(role="assistant" if i % 2 else "user", content=text) for i, text in enumerate(texts)]


def test_the_questions_of_an_image_are_one_balanced_conversation(tmp_path: Path) -> None:
    # of the four "yes", 25000 and 25002 have the smallest SHA-256 (0812..., 255d...; then c4fe..., e609...)
    assert vqa.read(*write(tmp_path), strict=True) == [
        Example(
            id="25",
            image=image("COCO_train2014_000000000025.jpg"),
            messages=turns(
                *(f"Is the giraffe eating?\n{REQUEST}", "Yes", "Is it dark?", "No"),
                *("Are there two?", "Yes"),
            ),
            task="yes_no",
            source="vqa_v2",
            split="train2014",
        ),
        Example(
            id="9",
            image=image("COCO_train2014_000000000009.jpg"),
            messages=turns(f"Is there meat?\n{REQUEST}", "No"),
            task="yes_no",
            source="vqa_v2",
            split="train2014",
        ),
    ]


def test_the_surplus_goes_whichever_answer_it_has_and_whatever_the_order(tmp_path: Path) -> None:
    rows = annotations_file()["annotations"]
    other = {"yes": "no", "no": "yes"}
    for row in rows:
        row["multiple_choice_answer"] = other.get(row["multiple_choice_answer"], "green")
    turned = questions_file(questions=questions_file()["questions"][::-1])
    questions, annotations = write(tmp_path, turned, annotations_file(annotations=rows))
    got = vqa.PROMPTS.read(questions, strict=True, options={"annotations": annotations})
    want = [("25002", "no"), ("9003", "yes"), ("25001", "yes"), ("25000", "no")]
    assert [(p.id, p.answer_type) for p in got] == want


def test_every_yes_no_question_without_balance(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    questions, annotations = write(tmp_path)
    options = {"annotations": annotations, "balance": "false", "image_name": "{id}.png"}
    with caplog.at_level(logging.INFO):
        nine, giraffe = vqa.EXAMPLES.read(questions, strict=True, options=options)
    assert [m.content for m in nine.messages[2:]] == ["Is there bread?", "Yes", "Is there meat?", "No"]
    assert (nine.image, len(giraffe.messages)) == (image("9.png"), 6)
    assert "6 of 7 questions are answered by yes or no" in caplog.text and "balance=false" not in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        vqa.read(questions, annotations)
    assert "4 of 6 yes/no questions are kept, as many yes as no" in caplog.text


def test_a_prompt_a_question_with_its_answer_as_type_and_fact(tmp_path: Path) -> None:
    questions, annotations = write(tmp_path)
    got = vqa.PROMPTS.read(questions, strict=True, options={"annotations": annotations})
    assert [p.id for p in got] == ["25000", "25001", "9003", "25002"]
    assert got[1] == Prompt(
        id="25001",
        image=image("COCO_train2014_000000000025.jpg"),
        question=f"Is it dark?\n{REQUEST}",
        facts=Facts(answer="no"),
        answer_type="no",
        source="vqa_v2",
        split="train2014",
    )
    assert got[0].facts.answer == got[0].answer_type == "yes"


def test_only_answers_of_yes_and_no_count(tmp_path: Path) -> None:
    rows = [annotation(1000, "Yes "), annotation(1001, "yes", "other"), annotation(1002, "maybe")]
    asked = questions_file(questions=[question(1000 + i, "Q?") for i in range(3)])
    questions, annotations = write(tmp_path, asked, {"annotations": rows})
    (got,) = vqa.EXAMPLES.read(questions, options={"annotations": annotations, "balance": "false"})
    assert [m.content for m in got.messages] == [f"Q?\n{REQUEST}", "Yes"]


def test_keys_may_stand_in_any_order(tmp_path: Path) -> None:
    want = vqa.read(*write(tmp_path))
    turned = [dict(reversed(value.items())) for value in (questions_file(), annotations_file())]
    assert vqa.read(*write(tmp_path, *turned), strict=True) == want


@pytest.mark.parametrize(
    ("bad", "key", "rule"),
    [
        (question(9, "Q?"), ".question_id", "question 9 has no annotation"),
        (question(9000, "Q?"), ".question_id", "question 9000 stands twice"),
        (question(9001, "Q?"), ".question_id", "question 9001 stands twice"),
        (question(8000, None), ".question", "null, where a string"),
        (question(8000, " "), ".question", "is empty"),
        (question(8000, "Q?", "7"), ".image_id", "a string, where a whole number"),
        ({"image_id": 7, "question": "Q?"}, ".question_id", "missing"),
        ("Q?", "", "not an object"),
    ],
)
def test_bad_questions_name_their_place(tmp_path: Path, bad: Any, key: str, rule: str) -> None:
    known = [*annotations_file()["annotations"], annotation(8000, "yes")]
    asked = questions_file(questions=[*questions_file()["questions"], bad])
    questions, annotations = write(tmp_path, asked, {"annotations": known})
    error = first_error(questions, annotations)
    assert str(error).startswith(f"{questions}[7]: questions.7{key}: ") and rule in error.rule and error.mend


@pytest.mark.parametrize(
    ("bad", "key", "rule"),
    [
        (annotation(9000, "yes"), ".question_id", "question 9000 has an annotation already"),
        (annotation(9001, "blue", "other"), ".question_id", "question 9001 has an annotation already"),
        ({"question_id": 9, "multiple_choice_answer": "no"}, ".answer_type", "missing"),
        ({"question_id": 9, "answer_type": "yes/no"}, ".multiple_choice_answer", "missing"),
        ({"answer_type": "yes/no"}, ".question_id", "missing"),
        (None, "", "not an object"),
    ],
)
def test_bad_annotations_name_their_place_in_their_file(
    tmp_path: Path, bad: Any, key: str, rule: str
) -> None:
    rows = [*annotations_file()["annotations"], bad]
    questions, annotations = write(tmp_path, None, {"annotations": rows})
    error = first_error(questions, annotations)
    assert str(error).startswith(f"{annotations}[7]: annotations.7{key}: ")
    assert rule in error.rule and error.mend


def test_a_bad_annotation_is_told_once(tmp_path: Path) -> None:
    rows = annotations_file()["annotations"]
    del rows[2]["answer_type"]
    questions, annotations = write(tmp_path, None, {"annotations": rows})
    pairs = list(vqa.EXAMPLES.pairs(questions, annotations=annotations))
    errors = [(got.file, got.key) for _, got in pairs if isinstance(got, DataError)]
    assert errors == [(annotations, "annotations.2.answer_type")]


@pytest.mark.parametrize(
    "pattern",
    [
        "a.jpg",
        "{subtype}.jpg",
        "{}.jpg",
        "{id",
        "{id:x}",
        "{id:099999d}",
        "{id.real}",
        "{id!r}",
        "{name}{id}",
    ],
)
def test_patterns_that_name_no_images(tmp_path: Path, pattern: str) -> None:
    error = first_error(*write(tmp_path), image_name=pattern)
    assert error.key == "options.image_name" and repr(pattern) in error.rule and "{subtype}" in error.mend


def test_other_options_that_are_wrong(tmp_path: Path) -> None:
    questions, annotations = write(tmp_path)
    assert first_error(questions, annotations, balance="yes").key == "options.balance"
    outside = first_error(questions, annotations, image_name="../{id}.jpg")
    assert (outside.index, outside.key) == (1, "questions.1.image_id")
    with pytest.raises(DataError, match="vqa_v2 needs 'annotations'"):
        vqa.EXAMPLES.read(questions)
    with pytest.raises(DataError, match="no such file"):
        vqa.read(questions, tmp_path / "none.json")
    swapped = first_error(questions, questions)
    assert (swapped.file, swapped.key) == (questions, "annotations")


def test_the_split_is_needed_for_names_that_hold_it(tmp_path: Path) -> None:
    plain = {"questions": questions_file()["questions"]}
    questions, annotations = write(tmp_path, plain)
    assert first_error(questions, annotations).key == "data_subtype"
    options = {"annotations": annotations, "image_name": "{id:012d}.jpg"}
    first, _ = vqa.EXAMPLES.read(questions, options=options)
    assert (first.image, first.split) == (image("000000000025.jpg"), None)
    assert first_error(*write(tmp_path, plain | {"data_subtype": 7})).key == "data_subtype"


@settings(max_examples=50, deadline=None)
@given(data=st.data(), change=st.sampled_from([mutated, spoiled]), first=st.booleans())
def test_only_data_errors_come_out(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, change: Any, first: bool
) -> None:
    questions, annotations = (tmp_path_factory.getbasetemp() / name for name in ("q.json", "a.json"))
    whole = json.dumps(questions_file()).encode(), json.dumps(annotations_file()).encode()
    questions.write_bytes(change(data, questions_file()) if first else whole[0])
    annotations.write_bytes(whole[1] if first else change(data, annotations_file()))
    check_pairs(vqa.EXAMPLES, questions, Example, annotations=str(annotations))
    check_pairs(vqa.PROMPTS, questions, Prompt, annotations=str(annotations), balance="false")
