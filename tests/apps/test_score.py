"""``align eval score``: answers from files through the command line, official files included."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from apps import cli
from data.jsonl import read_json, write_json
from tests.servers import Server, said


def _lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def pope(tmp_path: Path) -> Path:
    rows = [
        {"question_id": i, "image": f"{i}.jpg", "text": "Is there a cup?", "label": ("no", "yes")[i % 2]}
        for i in range(1, 9)
    ]
    return _lines(tmp_path / "coco_pope_random.json", rows)


def _score(*arguments: str) -> int:
    return cli.main(["eval", "score", *arguments])


def test_a_file_of_answers_becomes_figures_and_a_page(
    pope: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answers = [{"question_id": i, "answer": "Yes" if i < 7 else "no"} for i in range(1, 8)]
    path = _lines(tmp_path / "a.jsonl", [*answers, {"question_id": 99, "answer": "?"}])
    run = tmp_path / "run"
    arguments = [f"benchmarks.pope_random={pope}", f"answers.pope_random={path}", "name=mine"]
    assert _score(*arguments, "--output", str(run)) == 0
    found = read_json(run / "results.json")
    assert found["model"] == "mine"
    split = found["benchmarks"]["pope"]["splits"]["random"]
    # yes to 1..6 (three right), no to 7 (wrong); 8 is missing
    assert split["n"] == 7 and split["official"]["accuracy"]["value"] == pytest.approx(3 / 7)
    told = found["benchmarks"]["pope"]["answers"]
    assert told["missing"] == {"n": 1, "first": ["random/8"]}
    assert told["unknown"] == {"n": 1, "first": ["random/99"]}
    assert "1 missing, 1 unknown" in caplog.text
    assert "<html" in (run / "report.html").read_text("utf-8")
    assert len((run / "verdicts.jsonl").read_text("utf-8").splitlines()) == 14
    # the same files give the same bytes
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    assert _score(*arguments, "--output", str(run)) == 0
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before


@pytest.mark.parametrize("named", ["{i}", "random/{i}"])
def test_one_split_in_one_file_needs_no_prefix(pope: Path, tmp_path: Path, named: str) -> None:
    rows = [{"id": named.format(i=i), "answer": "Yes"} for i in range(1, 9)]
    path, run = _lines(tmp_path / "a.jsonl", rows), tmp_path / "run"
    arguments = [f"benchmarks.pope_random={pope}", f"output={run}"]
    assert _score(*arguments, f"answers={path}") == 0
    found = read_json(run / "results.json")["benchmarks"]["pope"]
    assert found["splits"]["random"]["n"] == 8 and found["answers"]["missing"]["n"] == 0
    # answers to another version of the split's questions
    sha256 = found["splits"]["random"]["sha256"]
    _lines(path, [row | {"sha256": sha256 if i else "0" * 64} for i, row in enumerate(rows)])
    assert _score(*arguments, f"answers={path}") == 0
    found = read_json(run / "results.json")["benchmarks"]["pope"]["answers"]
    assert found["other_version"] == {"n": 1, "first": ["random/1"]} and found["answered"] == 7


def test_a_missing_file_is_an_error_that_names_the_key(
    pope: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _score(f"benchmarks.pope_random={pope}", "answers=gone.jsonl", f"output={tmp_path / 'run'}") == 2
    assert "answers: no such file or directory: gone.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    other = _lines(tmp_path / "a.jsonl", [])
    assert (
        _score(f"benchmarks.pope_random={pope}", f"answers.mmhal={other}", f"output={tmp_path / 'run'}") == 2
    )
    assert "no file of answers to pope" in capsys.readouterr().err


def test_chair_is_about_the_images_that_were_described(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(1, 4)]
    notes = [{"image_id": i, "category_id": 1} for i in range(1, 4)]
    write_json(
        tmp_path / "instances.json",
        {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "dog"}]},
    )
    captions = [{"image_id": 1, "caption": "A puppy."}, {"image_id": 3, "caption": "A dog and a cat."}]
    path = _lines(tmp_path / "captions.jsonl", captions)
    run = tmp_path / "run"
    arguments = [f"benchmarks.chair={tmp_path / 'instances.json'}", f"answers={path}", f"output={run}"]
    assert _score(*arguments) == 0
    found = read_json(run / "results.json")["benchmarks"]["chair"]
    assert found["n"] == 2 and found["hallucination_rate"]["value"] == 0.5
    assert found["chair_i"]["value"] == pytest.approx(1 / 3) and found["answers"]["missing"]["n"] == 0
    # with a list of images, those that were not described are missing
    ids = tmp_path / "ids.txt"
    ids.write_text("1\n2\n3\n")
    assert _score(*arguments, f"chair.images={ids}") == 0
    found = read_json(run / "results.json")["benchmarks"]["chair"]
    assert found["answers"]["missing"] == {"n": 1, "first": ["2"]}


def test_the_official_pope_and_amber_files_run_from_answers(shared: Path, tmp_path: Path) -> None:
    data = shared / "data"
    arguments = [
        f"output={tmp_path / 'run'}",
        "bootstrap=100",
        "amber_nouns=words",
        f"benchmarks.amber={data / 'amber'}",
    ]
    for split in ("random", "popular", "adversarial"):
        source = data / "pope" / f"coco_pope_{split}.json"
        rows = [json.loads(line) for line in source.read_text("utf-8").splitlines()]
        path = _lines(
            tmp_path / f"{split}.jsonl", [{"question_id": r["question_id"], "answer": "Yes"} for r in rows]
        )
        arguments += [f"benchmarks.pope_{split}={source}", f"answers.pope_{split}={path}"]
    described = json.loads((data / "amber/annotations.json").read_text("utf-8"))
    said = [
        {"id": a["id"], "response": " ".join(a["truth"]) if a["type"] == "generative" else "No"}
        for a in described
    ]
    arguments.append(f"answers.amber={_lines(tmp_path / 'amber.jsonl', said)}")
    assert _score(*arguments) == 0
    found = read_json(tmp_path / "run/results.json")["benchmarks"]
    # half of POPE's answers are yes: precision .5, recall 1
    assert found["pope"]["overall"]["official"]["f1"]["value"] == pytest.approx(2 / 3)
    assert found["pope"]["answers"]["missing"]["n"] == 0
    official = found["amber"]["discriminative"]["official"]["all"]
    no = sum(a["truth"] == "no" for a in described if a["type"] != "generative")
    assert official["accuracy"]["value"] == round(no / (14216 + 0.001) * 100, 1)
    assert official["recall"]["value"] == 100.0
    assert found["amber"]["generative"]["official"]["chair"]["value"] == 0.0
    assert "no tagger" in found["amber"]["nouns"]


def test_a_judge_s_broken_characters_are_written_as_question_marks(
    server: Server, tmp_path: Path, world: Path
) -> None:
    server.reply = lambda n, body: (200, {}, said("\ud800 Rating: 5"))
    rows = [{"id": i, "answer": "a cup"} for i in range(12)]
    command = [f"benchmarks.mmhal={world / 'eval/mmhal.json'}", f"judge.endpoint.url={server.url}",
               "judge.endpoint.model=m", "--answers", str(_lines(tmp_path / "a.jsonl", rows))]  # fmt: skip
    assert _score(*command, "--output", str(tmp_path / "run")) == 0
    assert "? Rating: 5" in (tmp_path / "run/verdicts.jsonl").read_text("utf-8")


def test_a_file_of_other_answers_is_an_error(
    pope: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _lines(tmp_path / "a.jsonl", [{"id": "other/7", "answer": "Yes"}])
    command = [f"benchmarks.pope_random={pope}", "--answers", str(path), "--output", str(tmp_path / "run")]
    assert _score(*command) == 2
    told = "no answer in it is to an item of pope (its first id is 'other/7', the benchmark's 'random/1')"
    assert f"a.jsonl: {told}" in capsys.readouterr().err
    assert not (tmp_path / "run/results.json").exists()


def test_a_limit_makes_no_strangers(pope: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = _lines(tmp_path / "a.jsonl", [{"id": i, "answer": "Yes"} for i in range(1, 9)])
    command = [f"benchmarks.pope_random={pope}", "--answers", str(path), "--output", str(tmp_path / "run")]
    assert _score(*command, "--limit", "3") == 0
    found = read_json(tmp_path / "run/results.json")["benchmarks"]["pope"]
    assert found["answers"]["unknown"]["n"] == 0 and not caplog.records
    # one split alone is not shown as all of them
    assert "all splits" not in (tmp_path / "run/report.html").read_text()


def test_scoring_needs_no_torch(pope: Path, tmp_path: Path) -> None:
    path = _lines(tmp_path / "a.jsonl", [{"question_id": 1, "answer": "Yes"}])
    code = (
        "import sys; from apps import cli; "
        f"status = cli.main(['eval', 'score', 'benchmarks.pope_random={pope}', 'answers.pope_random={path}', "
        f"'output={tmp_path / 'run'}']); sys.exit(status or ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
