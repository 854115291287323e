"""The vision study: names and settings of each level's runs, blurred pictures, paired differences."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pil

from apps.chain import QUICK, chain
from apps.scheduler import Progress, Step, check_graph
from apps.studies import rlhf, vision
from data.jsonl import read_json, write_json
from evals.report import Table

Write = Callable[..., dict[str, Any]]


def test_levels_have_runs_of_their_own_and_share_the_start(tmp_path: Path) -> None:
    steps = {step.name: step for step in vision.steps_of(tmp_path, [200], (0.0, 2.5), QUICK)}
    check_graph(list(steps.values()))
    assert "200/sft" not in steps and "200/eval_sft" not in steps
    shared = {"data", "sft_plus", "samples", "eval_sft_plus", "labels", "clean"}
    arms = {
        "reward",
        "reward_report",
        "ppo",
        "eval_ppo",
        "reward_fact",
        "reward_fact_report",
        "ppo_fact",
        "eval_ppo_fact",
    }
    levels = {f"blur-{radius}{end}" for radius in ("0", "2.5") for end in ("", *(f"-{arm}" for arm in arms))}
    assert set(steps) == {f"200/{name}" for name in shared | levels}
    outputs = [
        step.arguments["overrides"]["output"] for step in steps.values() if "overrides" in step.arguments
    ]
    markers = [step.marker for step in steps.values()]
    assert len(set(outputs)) == len(outputs) and len(set(markers)) == len(markers) and None not in markers
    for step in steps.values():
        if "overrides" in step.arguments:
            assert step.marker == Path(step.arguments["overrides"]["output"]) / "DONE"


def test_at_level_sees_blurred_pictures_where_the_reward_model_looks(tmp_path: Path) -> None:
    steps = {step.name: step for step in chain(tmp_path, 1, QUICK)}
    blurred = str(tmp_path / "data/blur-2")

    def moved(name: str) -> tuple[Step, dict[str, Any], dict[str, Any]]:
        """The step at radius 2, and what changed in its overrides: (new, old)."""
        step = vision.at_level(steps[name], tmp_path, 2.0)
        old, new = steps[name].arguments.get("overrides", {}), step.arguments.get("overrides", {})
        keys = {key for key in {*old, *new} if old.get(key) != new.get(key)}
        return step, {key: new[key] for key in keys}, {key: old.get(key) for key in keys}

    reward, new, _ = moved("reward_fact")
    assert (reward.name, reward.needs) == ("blur-2-reward_fact", ("labels", "blur-2"))
    assert new == {
        "output": str(tmp_path / "blur-2-reward_fact"), "data.images": blurred, "eval_data.images": blurred
    }  # fmt: skip
    ppo, new, _ = moved("ppo_fact")
    assert (ppo.name, ppo.needs) == ("blur-2-ppo_fact", ("blur-2-reward_fact", "blur-2"))
    assert new == {
        "output": str(tmp_path / "blur-2-ppo_fact"),
        "reward_model": str(tmp_path / "blur-2-reward_fact"),
        "reward_images": blurred,
    }
    # the policy itself sees the sharp pictures
    assert ppo.arguments["overrides"]["data.images"] == str(tmp_path / "data")
    judged, new, old = moved("eval_ppo_fact")
    assert judged.name == "blur-2-eval_ppo_fact"
    assert new == {
        "output": str(tmp_path / "blur-2-eval_ppo_fact"),
        "model.adapter": str(tmp_path / "blur-2-ppo_fact/policy"),
    }
    assert old["model.adapter"] == str(tmp_path / "ppo_fact/policy")
    report, _, _ = moved("reward_report")
    assert report.arguments["reward"] == "blur-2-reward" and report.arguments["images"] == blurred
    assert report.marker == tmp_path / "blur-2-reward_report/results.json"


def test_pictures_of_pairs_and_prompts_are_blurred(tmp_path: Path, world: Path) -> None:
    (tmp_path / "data/images").mkdir(parents=True)
    for path in (world / "pairs.jsonl", world / "prompts.jsonl", *world.glob("images/w4[0123]-*")):
        shutil.copy(path, tmp_path / "data" / path.relative_to(world))
    vision.blur_pictures(str(tmp_path), 2.0)
    vision.blur_pictures(str(tmp_path), 0.0)
    names = sorted(path.name for path in (tmp_path / "data/blur-2/images").iterdir())
    assert len(names) == 24 and {name.split("-")[0] for name in names} == {"w42", "w43"}

    def spread(folder: str) -> float:
        pixels = Pil.open(tmp_path / "data" / folder / names[0]).convert("L").getdata()
        mean = sum(pixels) / len(pixels)
        return sum((p - mean) ** 2 for p in pixels) / len(pixels)

    assert spread("blur-0/images") == spread("images") > 1.1 * spread("blur-2/images")


def test_levels_are_read_and_differences_are_paired(
    tmp_path: Path, write_evaluation: Write, write_report: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compared(folder: Path, a: str, b: str) -> dict[str, Any]:
        assert (a, b) == ("blur-0-eval_ppo_fact", "blur-0-eval_ppo")
        value = {"difference": {"value": -0.01 if folder.name == "seed-200" else -0.03}}
        return {
            "t0.7": {
                "equal_recall": {"hallucination_rate": value, "chair_i": {"difference": {"value": None}}}
            }
        }

    monkeypatch.setattr(vision, "descriptions", compared)
    starts = {
        (200, 0, "ppo"): 0.3,
        (200, 0, "ppo_fact"): 0.1,
        (201, 0, "ppo"): 0.5,
        (201, 0, "ppo_fact"): 0.2,
        (200, 2, "ppo"): 0.7,
    }
    for (seed, radius, arm), start in starts.items():
        folder = tmp_path / f"seed-{seed}"
        write_evaluation(folder / f"blur-{radius}-eval_{arm}", start)
        write_report(folder, f"blur-{radius}-{arm.replace('ppo', 'reward')}", start)
    write_evaluation(tmp_path / "seed-200/eval_sft_plus", 0.4)
    rows = vision.read_levels(tmp_path, [200, 201], (0.0, 2.0))
    assert len(rows) == 6 and len(vision.policies(rows)) == 5
    _, policies, differences = vision.sections_of(rows, (0.0, 2.0))
    assert isinstance(policies, Table) and isinstance(differences, Table)
    assert [row[0] for row in policies.rows] == [
        "SFT+, where all start", "blur 0, RLHF", "blur 0, Fact-RLHF", "blur 2, RLHF", "blur 2, Fact-RLHF"
    ]  # fmt: skip
    start, plain = policies.rows[:2]
    assert start[1] is None and (start[2].value, start[2].n) == (pytest.approx(0.6), 1)
    # accuracy on hallucination pairs and hallucination rate at T = 0.7 both stand 0.2 above the start
    assert [(cell.value, cell.n) for cell in plain[1:3]] == [(pytest.approx(0.6), 2)] * 2
    assert differences.rows[0][:2] == ["blur 0", 2]
    # −0.2 and −0.3: mean −0.25, t(1)·0.0707107/√2
    paired = differences.rows[0][4]
    assert paired.value == pytest.approx(-0.25) and paired.high == pytest.approx(-0.25 + 12.7062 * 0.05)
    # claims are made from what is cut to equal recall, which stands first; an undefined figure is no zero
    assert (differences.rows[0][2].value, differences.rows[0][3].n) == (pytest.approx(-0.02), 0)
    assert differences.rows[1][:2] == ["blur 2", 0] and differences.rows[1][2].n == 0


def test_undefined_figures_reach_the_files(
    tmp_path: Path, write_evaluation: Write, write_report: Write
) -> None:
    folder = tmp_path / "seed-200"
    benchmarks = write_evaluation(folder / "blur-0-eval_ppo", 0.3)
    benchmarks["describe@0.7"]["chair_i"] |= {"value": None, "low": None, "high": None}
    write_json(folder / "blur-0-eval_ppo/results.json", {"model": "m", "benchmarks": benchmarks})
    write_report(folder, "blur-0-reward", 0.3)
    rows = vision.read_levels(tmp_path, [200], (0.0,))
    status = rlhf.status_of(Progress([]), "")
    vision.write_results(tmp_path, rows, (0.0,), status)
    assert read_json(tmp_path / "results.json")[0]["CHAIR_i, T=0.7"] is None
    assert "| – |" in (tmp_path / "tables.md").read_text()
