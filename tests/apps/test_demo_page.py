"""The demo's page from hand-made results: each number in its cell, text escaped, false words marked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apps import chain as chain_module
from apps import cli, demo
from apps.chain import POPE_SPLITS, QUICK, chain
from apps.scheduler import Progress, Step, StepError
from data.jsonl import write_json, write_lines
from data.world.build import read_scenes
from data.world.scene import OBJECTS
from evals.metrics import Interval
from evals.report import Curves, Gallery, Table, Text, render_report

Write = Callable[..., dict[str, Any]]


def progress(root: Path, *done: str, **more: Any) -> Progress:
    return Progress(chain(root, 0, QUICK), done=set(done), **more)


def table(page: Any, title: str) -> Table:
    return next(s for s in page.sections if isinstance(s, Table) and s.title == title)


def near(value: float) -> Interval:
    return Interval(value, pytest.approx(value - 0.011), pytest.approx(value + 0.012), 50)


# --- tables ---


def test_main_table(tmp_path: Path, write_evaluation: Write) -> None:
    write_evaluation(tmp_path / "eval_sft", 0.1)
    write_evaluation(tmp_path / "eval_ppo_fact", 0.5)
    found = demo.main_table(demo.results(tmp_path))
    # both splits have a yes-rate, 0.02 and 0.04 above the start, and 3 and 4 unparsed answers
    assert found.rows[0] == ["SFT", near(0.1), near(0.11), 7, pytest.approx(0.13), near(0.15), near(0.16)]
    assert found.rows[1] == [
        "Fact-RLHF",
        near(0.5),
        near(0.51),
        7,
        pytest.approx(0.53),
        near(0.55),
        near(0.56),
    ]
    assert found.rows[2] == ["SFT, thesis 7B", "76.0 %", None, None, None, "1.3", None]
    assert found.rows[5] == ["Fact-RLHF, thesis 7B", "81.5 %", None, None, None, "2.1", None]
    assert found.muted_rows == {2, 3, 4, 5}
    assert list(found.columns[1:4]) == ["POPE F1 (official)", "POPE F1 (strict)", "unparsed"]


def test_describe_table(tmp_path: Path, write_evaluation: Write) -> None:
    write_evaluation(tmp_path / "eval_sft_plus", 0.2)
    found = table(demo.build_page(tmp_path, progress(tmp_path), 0), "Free descriptions")
    greedy = [near(round(0.2 + k / 100, 4)) for k in range(10, 15)]
    sampled = [near(round(0.2 + k / 100, 4)) for k in range(20, 25)]
    assert found.rows == [["SFT+", "greedy", 50, *greedy], ["SFT+", "T = 0.7", 50, *sampled]]
    assert list(found.columns[3:6]) == ["with a false object", "CHAIR_i", "recall"]


def test_reward_table(tmp_path: Path, write_report: Write) -> None:
    write_report(tmp_path, "reward", 0.3)
    none = dict.fromkeys(("accuracy", "low", "high", "equal_length_accuracy", "shorter_accuracy")) | {"n": 0}
    write_report(tmp_path, "reward_fact", 0.6, hallucination=none)
    found = table(demo.build_page(tmp_path, progress(tmp_path), 0), "Reward models on held-out pairs")
    rest = [pytest.approx(v) for v in (0.501, 0.502, 0.403)]
    assert found.rows[0] == ["plain", near(0.3), near(0.4), near(0.5), *rest]
    assert found.rows[1] == ["fact-augmented", near(0.6), near(0.7), None, None, None, pytest.approx(0.703)]
    assert "n = 50, 50 and 50 pairs" in found.note and "agree with each other on 69%" in found.note


def test_summary(tmp_path: Path, write_evaluation: Write) -> None:
    write_evaluation(tmp_path / "eval_sft", 0.1)
    head, row, _ = demo.summary(tmp_path).splitlines()
    assert head.split() == ["model", "POPE", "F1", "yes", "false", "object", "recall"]
    assert row.split() == ["SFT", "0.100", "0.13", "0.300", "0.320"]


# --- curves ---


def test_curves_follow_the_metrics_of_runs_that_exist(tmp_path: Path) -> None:
    for run, rows in {
        "sft_plus": [{"step": 10, "loss": 2.5}, {"step": 20, "loss": "nan"}, {"step": 30, "loss": 1}],
        "ppo": [{"step": 1, "objective/kl": 0.0}, {"step": 2, "objective/kl": 0.5}],
    }.items():
        write_lines(tmp_path / run / "metrics.jsonl", map(json.dumps, rows))
    with open(tmp_path / "ppo/metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 3, "objective/kl": 9')  # being written
    charts = [s for s in demo.build_page(tmp_path, progress(tmp_path), 0).sections if isinstance(s, Curves)]
    assert {chart.title: dict(chart.series) for chart in charts} == {
        "SFT: training loss": {"SFT+": [(10, 2.5), (30, 1)]},
        "PPO: KL to SFT+": {"RLHF": [(1, 0), (2, 0.5)]},
    }


# --- the gallery ---


def test_gallery_shows_errors_first_and_marks_them(
    tmp_path: Path, world: Path, write_evaluation: Write
) -> None:
    (tmp_path / "data").symlink_to(world)
    scenes = [scene for name, scene in read_scenes(world).items() if name.startswith("w44-")][:12]
    absent = [next(name for name in OBJECTS if name not in scene.objects) for scene in scenes]
    # SFT errs in the last seven pictures; SFT+ denies what is absent
    said = {
        scene.id: f"a {scene.objects[0]}" + (f" and a {absent[i]}" if i >= 5 else "")
        for i, scene in enumerate(scenes)
    }
    denied = {scene.id: f"there is no {absent[i]} <b>here</b>" for i, scene in enumerate(scenes)}
    right = {
        f"{split}/{row['question_id']}": row["label"]
        for split in POPE_SPLITS
        for row in map(json.loads, (world / f"eval/pope_{split}.jsonl").read_text().splitlines())
    }
    write_evaluation(tmp_path / "eval_sft", 0.1, said, dict.fromkeys(right, "Yes"))
    write_evaluation(tmp_path / "eval_sft_plus", 0.1, denied, right)
    page = demo.build_page(tmp_path, progress(tmp_path), 0)
    # always yes is right in half of the questions: F1 2/3; seven of twelve descriptions were false
    change = table(page, "What each stage changed").rows
    assert [row[0] for row in change] == ["SFT+ − SFT"]
    assert [cell.value for cell in change[0][1:3]] == pytest.approx([1 - 2 / 3, -7 / 12])
    gallery = next(s for s in page.sections if isinstance(s, Gallery))
    marked = [item.answers["SFT"].pieces for item in gallery.items]
    shown = [*range(2), *range(5, 11)]
    for place, pieces in zip(shown, marked, strict=True):
        false = [(absent[place], True)] if place >= 5 else []
        assert [piece for piece in pieces if piece[1]] == false
    assert all(not any(wrong for _, wrong in item.answers["SFT+"].pieces) for item in gallery.items)
    for group in scenes[0].groups:
        assert f"{group.colour} {group.name}" in gallery.items[0].truth or group.count > 1
    html = render_report(page)
    assert f"<mark>{absent[5]}</mark>" in html
    assert "&lt;b&gt;here&lt;/b&gt;" in html and "<b>here" not in html


# --- where it stands ---


@pytest.mark.parametrize(
    ("more", "text", "running"),
    [
        ({"running": {"ppo_fact", "eval_sft"}}, "running: PPO (Fact-RLHF), eval sft", True),
        ({}, "running: starting", True),
        ({"ended": True, "failure": "step ppo: <no>"}, "stopped: step ppo: <no>; the same command", False),
        ({"ended": True}, "stopped: interrupted; the same command", False),
    ],
)
def test_status(tmp_path: Path, more: dict[str, Any], text: str, running: bool) -> None:
    page = demo.build_page(tmp_path, progress(tmp_path, "data", "sft", **more), 90)
    status = page.status
    assert status is not None
    assert status.text.startswith(text)
    assert (status.running, status.done, status.total, status.detail) == (running, 2, 15, "1.5 minutes")
    html = render_report(page)
    assert ('http-equiv="refresh"' in html) == running
    assert "<no>" not in html


# --- the command ---


def instead(monkeypatch: pytest.MonkeyPatch, run: Callable[..., None]) -> None:
    """A demo of a single step."""

    def one(root: Path, seed: int, scale: Any) -> list[Step]:
        return [Step("data", run, {"root": str(root)}, (), root / "data/DONE")]

    monkeypatch.setattr(demo, "chain", one)


def stop(root: str) -> None:
    raise chain_module.ChainError("the world\nis flat")


def draw(root: str) -> None:
    (Path(root) / "data").mkdir(exist_ok=True)
    (Path(root) / "data/DONE").touch()


def test_a_folder_of_another_demo_ends_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "run_steps", lambda *_, **__: None)
    command = ["demo", "--quick", "--output", str(tmp_path / "demo")]
    assert cli.main([*command, "--seed", "1"]) == 0
    monkeypatch.setattr(demo, "run_steps", lambda *_, **__: pytest.fail("it ran"))
    capsys.readouterr()
    assert cli.main([*command, "--seed", "2"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "seed: 1 there, 2 now; choose another folder" in error.replace(")", "")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/data").touch()
    assert cli.main(["demo", "--output", str(tmp_path / "mine")]) == 2
    assert "not empty, and without demo.json" in capsys.readouterr().err


def test_a_failed_demo_says_so_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["demo", "--quick", "--output", str(tmp_path / "demo")]
    instead(monkeypatch, stop)
    assert cli.main(command) == 2
    assert capsys.readouterr().err == "align: error: step data: the world is flat\n"
    html = (tmp_path / "demo/report.html").read_text()
    assert "stopped: step data: the world is flat; the same command goes on from here" in html
    instead(monkeypatch, draw)
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert re.search(r"\d s  start  drawing the world\n +\d+ s  done   drawing the world\n", out)
    assert "A miniature: it shows that everything runs." in out
    assert "A miniature: it shows" in (tmp_path / "demo/report.html").read_text()
    instead(monkeypatch, stop)  # not called: the step is done
    assert cli.main(command) == 0
    assert "drawing" not in capsys.readouterr().out
    assert ">finished<" in (tmp_path / "demo/report.html").read_text()


def test_a_defect_keeps_its_traceback_for_debugging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_DEBUG", "1")
    instead(monkeypatch, stop)
    with pytest.raises(StepError) as caught:
        cli.main(["demo", "--quick", "--output", str(tmp_path / "demo")])
    assert "in stop" in str(caught.value.__cause__.__cause__)


def test_a_run_that_ended_early_says_why(tmp_path: Path) -> None:
    write_json(tmp_path / "ppo/result.json", {"steps": 15, "stopped": "after 16 steps the KL is 4.17"})
    write_json(tmp_path / "ppo_fact/result.json", {"steps": 24, "stopped": None})
    assert demo.curves(tmp_path) == [Text("RLHF ended early: after 16 steps the KL is 4.17.")]
