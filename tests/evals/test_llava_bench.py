from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.jsonl import DataError
from evals.judges import FunctionJudge
from evals.llava_bench import (
    BenchItem,
    LlavaBenchBenchmark,
    read_questions,
    scores_official,
    scores_strict,
)


@pytest.mark.parametrize(
    ("text", "official", "strict"),
    [
        ("8 9\nBecause.", (8, 9), (8, 9)),
        ("8, 9\n", (8, 9), (8, 9)),
        ("7.5 6", (7.5, 6), (7.5, 6)),
        ("0 11", (0, 11), None),
        ("First: 8, second: 9", None, None),
        ("8", None, None),
        ("8 9 10", None, None),
        ("nan 3", None, None),
        ("\n8 9", None, None),
        ("", None, None),
    ],
)
def test_two_numbers_in_the_first_line(text: str, official: object, strict: object) -> None:
    assert scores_official(text) == official
    assert scores_strict(text) == strict


def _items(n: int) -> tuple[BenchItem, ...]:
    kinds = ("detail", "conv", "complex")
    return tuple(
        BenchItem(str(i), f"{i}.jpg", f"q{i}", kinds[i % 3], f"ref{i}", "A {question} in braces.")
        for i in range(n)
    )


def test_relative_score_by_hand() -> None:
    said = {"0": "8 4", "1": "5 5", "2": "no idea"}
    judge = FunctionJudge("j", lambda request: said[request.id])
    got = LlavaBenchBenchmark(_items(3), judge, n_boot=50).score(dict.fromkeys(said, "answer")).result
    # official: -1 for both where nothing could be read
    assert got["official"]["relative"]["value"] == pytest.approx(100 * (4 + 5 - 1) / (8 + 5 - 1))
    assert got["strict"]["relative"]["value"] == pytest.approx(100 * 9 / 13)
    assert got["strict"]["unrated"] == ["2"] and got["strict"]["relative"]["n"] == 2
    assert list(got["official"]["by_category"]) == ["conv", "detail", "complex"]
    assert got["official"]["by_category"]["detail"]["relative"]["value"] == 50.0


def test_repeats_show_how_steady_the_judge_is() -> None:
    said = {
        ("0", 0): "8 4",
        ("1", 0): "4 4",
        ("0", 1): "8 8",
        ("1", 1): "4 4",
        ("0", 2): "8 6",
        ("1", 2): "?",
    }
    judge = FunctionJudge("j", lambda request: said[request.id, request.repeat])
    scored = LlavaBenchBenchmark(_items(2), judge, 3, n_boot=50).score(dict.fromkeys("01", "answer"))
    # the first words count; over the rounds 8/12, 12/12, and 6/8 by the rule that leaves "?" out
    strict = scored.result["strict"]
    assert strict["relative"]["value"] == pytest.approx(100 * 8 / 12)
    assert strict["repeats"]["scores"] == pytest.approx([100 * 8 / 12, 100.0, 75.0])
    assert strict["repeats"]["interval"]["n"] == 3
    assert scored.result["official"]["repeats"]["scores"][2] == pytest.approx(100 * (6 - 1) / (8 - 1))


def test_braces_in_values_stay_as_they_are() -> None:
    prompt = _items(1)[0].prompt("It says {reference}.")
    assert "A {question} in braces." in prompt and "It says {reference}." in prompt and "ref0" in prompt


def test_without_a_judge_nothing_is_rated() -> None:
    got = LlavaBenchBenchmark(_items(1), None).score({"0": "x"})
    assert got.result["judge"] is None and got.verdicts == []


def test_a_question_without_reference_is_named(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("q.jsonl", "r.jsonl", "c.jsonl")]
    question = {"question_id": 1, "image": "1.jpg", "text": "?", "category": "conv"}
    files[0].write_text(json.dumps(question))
    files[1].write_text(json.dumps({"question_id": 2, "text": "x"}))
    files[2].write_text(json.dumps({"image": "1.jpg", "caption": "A cat."}))
    with pytest.raises(DataError, match="question 1 has no reference answer"):
        read_questions(*files)
    files[1].write_text(json.dumps({"question_id": 1, "text": "x"}))
    assert read_questions(*files)[0].context == "A cat."
    files[0].write_text("\n".join([json.dumps(question)] * 2))
    with pytest.raises(DataError, match="question 1 stands twice"):
        read_questions(*files)


def test_the_real_questions_run_with_a_judge(shared: Path) -> None:
    folder = shared / "data" / "llava_bench"
    names = ("qa90_questions.jsonl", "qa90_gpt4_answer.jsonl", "caps_boxes_coco2014_val_80.jsonl")
    items = read_questions(*(folder / name for name in names))
    assert len(items) == 90 and {item.category for item in items} == {"conv", "detail", "complex"}
    judge = FunctionJudge("equal", lambda request: "9 9" if request.response == request.reference else "9 3")
    same = LlavaBenchBenchmark(items, judge, n_boot=50).score({item.id: item.reference for item in items})
    assert same.result["official"]["relative"]["value"] == 100.0
