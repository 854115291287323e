"""``align eval compare``: two files of answers scored, then held against each other."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from pathlib import Path

import pytest

from apps import cli
from apps.compare import compare
from apps.eval_runs import Part
from data.jsonl import read_json, write_records
from data.schema import Image, Verdict
from evals.runner import EvalItem, Scored

LABELS = ["yes", "no"] * 5


def _run(tmp_path: Path, name: str, said: dict[int, str], questions: Path) -> Path:
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"question_id": i, "answer": t}) + "\n" for i, t in said.items()))
    run = tmp_path / name
    arguments = [f"benchmarks.pope_random={questions}", f"answers.pope_random={path}", f"name={name}"]
    assert cli.main(["eval", "score", *arguments, "bootstrap=100", f"output={run}"]) == 0
    return run


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [
        {"question_id": i, "image": f"{i}.jpg", "text": f"Is there a {i}?", "label": label}
        for i, label in enumerate(LABELS)
    ]
    path = tmp_path / "pope_random.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_answers_are_joined_by_id_and_what_changed_is_listed(
    tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = {i: label.capitalize() for i, label in enumerate(LABELS)}
    one = _run(tmp_path, "one", right, questions)
    # the other answers in another order, always yes, and leaves out the last
    other = _run(tmp_path, "other", dict.fromkeys(reversed(range(9)), "Yes"), questions)
    assert cli.main(["eval", "compare", str(one), str(other), "--output", str(tmp_path / "diff")]) == 0
    found = read_json(tmp_path / "diff/compare.json")["benchmarks"]["pope"]
    assert (found["n"], found["only_first"], found["only_second"]) == (9, 1, 0)
    official = found["by_rule"]["official"]
    assert official["mcnemar"] == {"only_a": 4, "only_b": 0, "p": 2 / 2**4}
    # five yes of nine: F1 of "always yes" is 2·5 / (2·5 + 4)
    assert official["f1"]["value"] == pytest.approx(1 - 10 / 14)
    changed = found["changed"]["pope/official"]
    assert [item["id"] for item in changed] == [f"random/{i}" for i in (1, 3, 5, 7)]
    assert changed[0]["first"] == {"response": "No", "label": "no", "score": 1.0}
    page = (tmp_path / "diff/compare.html").read_text("utf-8")
    assert "4 changed items (pope/official)" in page and "one against other" in page
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"done: {tmp_path / 'diff/compare.html'}"
    f1 = official["f1"]
    interval = f"[{f1['low']:.3f}, {f1['high']:.3f}], n = {f1['n']}"
    assert said[-2] == f"pope, by rule, official, f1: one − other = 0.286 {interval}"


def test_what_did_not_change_is_told_once_a_judge(tmp_path: Path, questions: Path) -> None:
    one = _run(tmp_path, "one", dict.fromkeys(range(10), "Yes"), questions)
    assert cli.main(["eval", "compare", str(one), str(one), "--output", str(tmp_path / "diff")]) == 0
    page = (tmp_path / "diff/compare.html").read_text("utf-8")
    judges = read_json(tmp_path / "diff/compare.json")["benchmarks"]["pope"]["changed"]
    assert len(judges) == 2 and all(f"pope: changed items ({judge})" in page for judge in judges)


def test_two_versions_of_the_questions_are_not_compared(
    tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = dict.fromkeys(range(10), "Yes")
    one = _run(tmp_path, "one", said, questions)
    newer = tmp_path / "newer" / "pope_random.jsonl"
    newer.parent.mkdir()
    newer.write_text(questions.read_text().replace('"no"', '"yes"'))
    other = _run(tmp_path, "other", said, newer)
    assert cli.main(["eval", "compare", str(one), str(other), "--output", str(tmp_path / "diff")]) == 2
    assert "asked different questions (random differs); evaluate both on the same" in capsys.readouterr().err
    assert not (tmp_path / "diff").exists()


def test_a_folder_that_is_no_evaluation_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "compare", str(tmp_path), str(tmp_path)]) == 2
    assert "no finished evaluation in it; give the output of `align eval run`" in capsys.readouterr().err


def _verdict(question: str, score: float) -> Verdict:
    return Verdict(id="0", image="i", question=question, response=f"say {score}", label="x", score=score,
                   judge="judge/one at host", reason=f"Rating: {score:g}")  # fmt: skip


def test_ids_that_two_judged_benchmarks_share_are_told_apart() -> None:
    def part_of(scores: dict[str, float]) -> Part:
        verdicts = {("0", question): _verdict(question, score) for question, score in scores.items()}
        return Part({"mmhal": {"0": "a"}, "llava_bench": {"0": "b"}}, {"judge/one at host": verdicts})

    class Judged:
        """A benchmark that a judge rates, of one question."""

        ratings = {"official": lambda text: float(text[-1]), "strict": lambda text: None}

        def __init__(self, name: str, question: str) -> None:
            self.name, self.items = name, [EvalItem("0", Image(id="i", path="i.png"), question)]

        def only(self, ids: Container[str]) -> Judged:
            return self

        def score(self, responses: Mapping[str, str]) -> Scored:
            raise NotImplementedError

    one = part_of({"Q of mmhal": 4.0, "Q of the other": 1.0})
    two = part_of({"Q of mmhal": 4.0, "Q of the other": 3.0})
    found = compare(Judged("mmhal", "Q of mmhal"), one, two)
    assert found["by_judge"]["judge/one at host"]["official"]["score"]["value"] == 0.0
    # what a rule cannot read is in no mean
    assert found["by_judge"]["judge/one at host"]["strict"] == {"n": 0, "unrated": 1}
    assert found["changed"] == {"judge/one at host": []}
    found = compare(Judged("llava_bench", "Q of the other"), one, two)
    assert found["by_judge"]["judge/one at host"]["official"]["score"]["value"] == -2.0
    assert [item["question"] for item in found["changed"]["judge/one at host"]] == ["Q of the other"]


def test_words_without_a_rating_are_no_zero(tmp_path: Path, world: Path) -> None:
    """Official counts what cannot be read as 0, strict leaves it out; both stand there, with how many."""

    def scored(name: str, words: str) -> Path:
        answers, verdicts = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.verdicts.jsonl"
        answers.write_text("".join(f'{{"id": {i}, "answer": "a cup"}}\n' for i in range(12)))
        questions = [row["question"] for row in json.loads((world / "eval/mmhal.json").read_text())]
        write_records(verdicts, [
            Verdict(id=str(i), question=q, response="a cup", judge="people",
                    reason=words if i % 2 else "Rating: 6")
            for i, q in enumerate(questions)
        ])  # fmt: skip
        command = ["eval", "score", f"benchmarks.mmhal={world / 'eval/mmhal.json'}", f"verdicts={verdicts}"]
        command += ["--answers", str(answers), "--output", str(tmp_path / name), f"name={name}"]
        assert cli.main([*command, f"world={world}"]) == 0
        return tmp_path / name

    one, two = scored("one", "Rating: 6"), scored("two", "I cannot rate this.")
    found = read_json(two / "results.json")["benchmarks"]["mmhal"]
    assert (found["official"]["score"]["value"], found["strict"]["score"]["value"]) == (3.0, 6.0)
    assert cli.main(["eval", "compare", str(one), str(two), "--output", str(tmp_path / "diff")]) == 0
    by_judge = read_json(tmp_path / "diff/compare.json")["benchmarks"]["mmhal"]["by_judge"]
    rules = by_judge["recorded people"]
    assert rules["official"]["score"]["value"] == 3.0 and rules["official"]["n"] == 12
    assert rules["strict"]["score"]["value"] == 0.0
    assert (rules["strict"]["n"], rules["strict"]["unrated"]) == (6, 6)
    page = (two / "report.html").read_text()
    assert "recorded people: no rating" in page and "not judged" in page
