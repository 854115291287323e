from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.formats.pope import PopeItem
from data.jsonl import DataError
from evals.answers import Answers, read_answers, score
from evals.mmbench import Choice, MmbenchBenchmark
from evals.pope import PopeBenchmark, split_of


def _file(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def _read(path: Path, **more: Any) -> Answers:
    return read_answers(path, ["1", "2", "3", "4"], benchmark="b", **more)


def test_every_trouble_is_counted_and_nothing_guessed(tmp_path: Path) -> None:
    path = _file(
        tmp_path / "a.jsonl",
        {"id": "1", "response": "yes"},
        {"id": "1", "response": "yes"},
        {"id": "2", "response": "yes"},
        {"id": "2", "response": "no"},
        {"id": "9", "response": "yes"},
        {"id": "3", "response": "yes", "sha256": "old"},
        b"\xff\xfe",
        b"not json",
        {"id": "4"},
        {"id": "4", "response": 5},
        {"response": "yes"},
        {"id": "4", "response": "no", "benchmark": "another"},
    )
    got = _read(path, sha256="new")
    assert got.texts == {"1": "yes"}
    assert got.duplicate == ("1",) and got.conflicting == ("2",) and got.unknown == ("9",)
    assert got.other_version == ("3",) and got.missing == ("2", "3", "4")
    assert len(got.unreadable) == 5 and not got.complete
    assert "a.jsonl:7" in got.unreadable[0] and "UTF-8" in got.unreadable[0]
    assert "no text" in got.unreadable[2] and "give it as one of response" in got.unreadable[2]
    told = got.as_dict()
    assert told["answered"] == 1 and told["missing"] == {"n": 3, "first": ["2", "3", "4"]}


@pytest.mark.parametrize(
    "rows",
    [
        [{"question_id": 1, "answer": "a"}, {"question_id": 2, "answer": "b"}],
        [{"image_id": 1, "caption": "a"}, {"image_id": 2, "caption": "b"}],
        [{"id": 1, "text": "a", "extra": None}, {"id": 2, "text": "b"}],
    ],
)
def test_the_layouts_of_other_scorers(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    assert _read(_file(tmp_path / "a.jsonl", *rows)).texts == {"1": "a", "2": "b"}
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert _read(tmp_path / "a.json").texts == {"1": "a", "2": "b"}
    prefixed = read_answers(tmp_path / "a.json", ["random/1"], benchmark="b", prefix="random/")
    assert prefixed.texts == {"random/1": "a"} and prefixed.unknown == ("random/2",)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        _read(tmp_path / "absent.jsonl")


def _pope(n: int) -> PopeBenchmark:
    items = [
        PopeItem(question_id=i, image=f"{i}.jpg", text="?", label="yes" if i % 2 else "no") for i in range(n)
    ]
    return PopeBenchmark((split_of("random", items), split_of("popular", items)), n_boot=20)


def test_figures_are_of_the_answered_items_and_say_so() -> None:
    bench = _pope(4)
    texts = {f"random/{i}": "Yes" for i in (0, 1, 3)}
    missing = tuple(item.id for item in bench.items if item.id not in texts)
    got = score(bench, Answers(texts, missing=missing)).result
    assert list(got["splits"]) == ["random"] and got["splits"]["random"]["n"] == 3
    assert got["splits"]["random"]["official"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert got["answers"]["missing"]["n"] == 5
    # the hash stays that of the whole file
    assert got["splits"]["random"]["sha256"] == bench.splits[0].sha256


def test_no_answer_gives_no_figure() -> None:
    assert score(_pope(2), Answers({}, missing=("random/0",))).result == {
        "n": 0,
        "answers": Answers({}, missing=("random/0",)).as_dict(),
    }


def test_a_question_counts_only_with_all_its_rotations() -> None:
    bench = MmbenchBenchmark((Choice("1", "?", ("a", "b"), 0), Choice("2", "?", ("c", "d"), 0)), n_boot=20)
    texts = {"1/0": "A", "1/1": "B", "2/0": "A"}
    got = score(bench, Answers(texts, missing=("2/1",))).result
    assert got["n"] == 1 and got["official"]["circular"]["value"] == 1.0
    assert got["sha256"] == bench.sha256
    assert score(bench, Answers({"2/0": "A"}, missing=("2/1",))).result["n"] == 0
