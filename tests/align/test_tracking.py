"""Reports to Weights & Biases, against a stand-in of its package that writes down what it is told."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from align.checkpoint import CheckpointError, RunDir
from align.config import DataSettings, ModelSettings, SftSettings
from align.tracking import PROJECT, TrackingError

#: wandb as far as it is used; ``server.json`` beside it plays the server: the last step of each run
STAND_IN = """
import json, os, pathlib

_here = pathlib.Path(__file__).parent
_server = _here / "server.json"
class Error(Exception): pass

def _tell(**what):
    with open(_here / "told.jsonl", "a") as file:
        file.write(json.dumps(what) + "\\n")

class Run:
    def __init__(self, id):
        self.id, self.step = id, json.loads(_server.read_text()).get(id, -1) + 1 if _server.exists() else 0
    def log(self, values, step):
        assert step >= self.step, "W&B would ignore this"
        self.step = step
        known = json.loads(_server.read_text()) if _server.exists() else {}
        _server.write_text(json.dumps(known | {self.id: step}))
        _tell(log=values, step=step)
    def finish(self, exit_code):
        _tell(finish=exit_code)

def init(**given):
    if os.environ.get("WANDB_MODE") != "offline":
        raise Error("No API key configured.\\nUse `wandb login`")
    _tell(init=given)
    return Run(given["id"])
"""


def told(tmp_path: Path) -> list[dict[str, Any]]:
    file = tmp_path / "site/wandb/told.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "site/wandb").mkdir(parents=True)
    (tmp_path / "site/wandb/__init__.py").write_text(STAND_IN)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "site")
    for name in ("PROJECT", "ENTITY", "API_KEY"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield
    sys.modules.pop("wandb", None)


def settings(**changes: Any) -> SftSettings:
    fixed = {"output": "anywhere", "model": ModelSettings(path="m"), "data": DataSettings(path="d")}
    return SftSettings.model_validate(fixed | {"report_to": ["wandb"], "seed": 7} | changes)


@pytest.mark.usefixtures("wandb")
def test_metrics_keep_their_names_and_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "s3cret-key")
    output = tmp_path / "runs/ppo"
    with RunDir.create(output, settings(), "ppo") as run:
        run.log(1, **{"objective/kl": 0.5, "note": "text", "flag": True})
        run.log(1, **{"eval/loss": 2})
        run.log(3, **{"objective/kl": math.nan})
        run.done()
    first, *rest = told(tmp_path)
    given = first["init"]
    identity = json.loads((output / "wandb.json").read_text())
    assert identity == {"id": given["id"], "project": PROJECT, "entity": None} and len(given["id"]) == 8
    assert (given["name"], given["job_type"], given["resume"]) == ("runs/ppo", "ppo", "allow")
    assert given["config"]["seed"] == 7 and given["dir"] == str(output)
    assert rest[:2] == [
        {"log": {"objective/kl": 0.5, "flag": True}, "step": 1},
        {"log": {"eval/loss": 2}, "step": 1},
    ]
    assert math.isnan(rest[2]["log"]["objective/kl"]) and rest[2]["step"] == 3
    assert rest[3:] == [{"finish": 0}]
    written = [p.read_bytes() for p in output.rglob("*") if p.is_file()]
    assert written and not any(b"s3cret" in content for content in written)


@pytest.mark.usefixtures("wandb")
def test_a_resumed_run_is_the_same_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_ENTITY", "us")
    output = tmp_path / "run"
    with pytest.raises(RuntimeError, match="it broke"), RunDir.create(output, settings(), "ppo") as run:
        for step in (1, 2, 3):
            run.log(step, loss=step)
        raise RuntimeError("it broke")
    monkeypatch.setenv("WANDB_PROJECT", "another")
    # the checkpoint was of step 1: 2 and 3 are computed again, and are there already
    with RunDir.create(output, settings(resume=True), "ppo") as run:
        run.truncate_metrics(1)
        for step in (2, 3, 4):
            run.log(step, loss=step)
        run.done()
    found = told(tmp_path)
    starts = [row["init"] for row in found if "init" in row]
    assert starts[0]["id"] == starts[1]["id"]
    assert {(row["project"], row["entity"]) for row in starts} == {("mine", "us")}
    assert [row["step"] for row in found if "log" in row] == [1, 2, 3, 4]
    assert [row["finish"] for row in found if "finish" in row] == [1, 0]
    # nothing is left to report
    RunDir.create(output, settings(resume=True), "ppo").close()
    assert told(tmp_path) == found


@pytest.mark.usefixtures("wandb")
def test_a_refusal_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    with pytest.raises(TrackingError, match=r"No API key configured\. Use .*WANDB_MODE=offline"):
        RunDir.create(tmp_path / "run", settings(), "ppo")
    monkeypatch.setenv("WANDB_MODE", "offline")
    # the directory is free again
    RunDir.create(tmp_path / "run", settings(resume=True), "ppo").close()


def test_without_the_package_nothing_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(TrackingError, match=r"wandb is not usable .*pip install wandb, or leave it out"):
        RunDir.create(tmp_path / "run", settings(), "ppo")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("wandb")
def test_it_is_loaded_only_when_asked_for(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run", settings(report_to=[]), "ppo") as run:
        run.log(1, loss=1)
        run.done()
    assert "wandb" not in sys.modules and not (tmp_path / "run/wandb.json").exists()
    # how a run is reported may change while it goes on
    with RunDir.create(tmp_path / "other", settings(report_to=[]), "ppo") as run:
        run.log(1, loss=1)
    with RunDir.create(tmp_path / "other", settings(resume=True), "ppo") as run:
        run.log(2, loss=1)
    assert [row["step"] for row in told(tmp_path) if "log" in row] == [2]
    with pytest.raises(CheckpointError, match="seed: 7 there, 8 now"):
        RunDir.create(tmp_path / "other", settings(resume=True, seed=8), "ppo")
