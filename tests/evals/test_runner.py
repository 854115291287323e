from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from data.jsonl import DataError, read_records
from data.schema import Image, Verdict
from evals.runner import EvalItem, Scored, run

REPOSITORY = Path(__file__).resolve().parents[2]


class Lengths:
    """A benchmark whose score is the length of each response."""

    def __init__(self, n: int = 5, name: str = "lengths", question: str = "q") -> None:
        self.name = name
        self.items = [
            EvalItem(f"{i}", Image(id=f"img{i}", path=f"{i}.png"), f"{question}{i}") for i in range(n)
        ]

    def score(self, responses: Mapping[str, str]) -> Scored:
        verdicts = [
            Verdict(
                id=i.id,
                question=i.question,
                response=responses[i.id],
                judge="len",
                score=len(responses[i.id]),
            )
            for i in self.items
        ]
        return Scored({"lengths": {k: len(v) for k, v in responses.items()}}, verdicts)


class Model:
    def __init__(self, fail_at: int | None = None) -> None:
        self.asked: list[str] = []
        self.fail_at = fail_at

    def __call__(self, items: list[EvalItem]) -> dict[str, str]:
        if self.fail_at is not None and len(self.asked) >= self.fail_at:
            raise RuntimeError("power cut")
        self.asked += [i.id for i in items]
        return {i.id: "x" * int(i.id) for i in reversed(items)}


def test_results_are_joined_by_id_and_written(tmp_path: Path) -> None:
    got = run([Lengths()], Model(), tmp_path, model="m", settings={"temperature": 0}, chunk=2)
    assert got["benchmarks"]["lengths"]["lengths"] == {str(i): i for i in range(5)}
    assert json.loads((tmp_path / "results.json").read_text()) == got
    verdicts = read_records(tmp_path / "verdicts.jsonl", "verdict")
    assert [(v.id, v.score) for v in verdicts] == [(str(i), i) for i in range(5)]


def test_a_killed_run_resumes_item_by_item_with_the_same_bytes(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run([Lengths()], Model(), whole, model="m", chunk=2)
    with pytest.raises(RuntimeError):
        run([Lengths()], Model(fail_at=4), broken, model="m", chunk=2)
    journal = broken / "responses.jsonl"
    journal.write_bytes(journal.read_bytes()[:-5])  # the kill came while a line was written
    again = Model()
    run([Lengths()], again, broken, model="m", chunk=2)
    assert again.asked == ["3", "4"]
    for name in ("results.json", "responses.jsonl", "verdicts.jsonl"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    idle = Model()
    run([Lengths()], idle, broken, model="m")
    assert idle.asked == []


def test_benchmarks_share_the_file_without_mixing(tmp_path: Path) -> None:
    model = Model()
    run([Lengths(2), Lengths(2, name="other")], model, tmp_path, model="m")
    assert model.asked == ["0", "1", "0", "1"]
    with pytest.raises(DataError, match="names repeat"):
        run([Lengths(), Lengths()], model, tmp_path, model="m")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"model": "other"}, "model"), ({"settings": {"seed": 1}}, "settings")],
)
def test_responses_of_another_run_are_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    run([Lengths()], Model(), tmp_path, model="m")
    with pytest.raises(DataError, match=rf"responses.jsonl:1: {message}: .*choose another output folder"):
        run([Lengths()], Model(), tmp_path, **({"model": "m"} | change))


def test_a_changed_question_is_refused(tmp_path: Path) -> None:
    run([Lengths()], Model(), tmp_path, model="m")
    with pytest.raises(DataError, match="question: an earlier run has 'q0'"):
        run([Lengths(question="other")], Model(), tmp_path, model="m")


def test_what_generate_returns_is_checked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 ids are missing \('4'\)"):
        run([Lengths()], lambda items: {i.id: "" for i in items[:-1]}, tmp_path, model="m")
    with pytest.raises(DataError, match="is a NoneType, not text"):
        run([Lengths()], lambda items: {i.id: None for i in items}, tmp_path, model="m")  # type: ignore[misc]
    twice = Lengths()
    twice.items.append(twice.items[0])
    with pytest.raises(DataError, match="two items have the id '0'"):
        run([twice], Model(), tmp_path, model="m")


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    run([Lengths()], Model(), tmp_path, model="m")
    path = tmp_path / "responses.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{oops", *lines[2:]]) + "\n")
    with pytest.raises(DataError, match=r"responses.jsonl:2: not a JSON object"):
        run([Lengths()], Model(), tmp_path, model="m")


def test_text_that_utf8_cannot_hold_does_not_stop_the_run(tmp_path: Path) -> None:
    got = run([Lengths(1)], lambda items: {i.id: "a\ud800b" for i in items}, tmp_path, model="m")
    assert got["benchmarks"]["lengths"]["lengths"] == {"0": 3}


def test_progress_counts_up(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    run([Lengths()], Model(), tmp_path, model="m", chunk=2, progress=lambda *a: seen.append(a))
    assert seen == [("lengths", 0, 5), ("lengths", 2, 5), ("lengths", 4, 5), ("lengths", 5, 5)]


def test_evals_import_neither_torch_nor_align() -> None:
    modules = sorted(path.stem for path in (REPOSITORY / "evals").glob("[a-z]*.py"))
    assert "report" in modules
    code = "import sys; " + "; ".join(f"import evals.{name}" for name in modules)
    code += (
        "; bad = {m.split('.')[0] for m in sys.modules} & {'torch', 'align', 'transformers'}; assert not bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
