"""A PPO run in its own process, killed outright again and again: only the step in flight is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from align.ppo import run
from tests.align.test_ppo import lines, metrics, settings, world  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
#: seconds after the step that was waited for has ended
DELAYS = (0.0, 0.07, 0.19)


def steps_in(output: Path) -> int:
    path = output / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def test_killed_at_any_moment_and_continued(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.getfixturevalue("world")
    # checkpoints come after every step by default
    changes = {"steps": 8, "keep_every": 3, "save_every": 1, "threads": 1}
    run(settings(folder, tmp_path / "whole", **changes))
    output = tmp_path / "killed"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings(folder, output, **changes).model_dump(mode="json")))
    command = [sys.executable, "-m", "apps.cli", "ppo", str(recipe), "--resume"]
    done = 0
    for delay in DELAYS:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            # a resumed run first forgets what came after its checkpoint: at most one step
            while steps_in(output) <= done and process.poll() is None:
                time.sleep(0.01)
            time.sleep(delay)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert process.returncode == -signal.SIGKILL, "it had ended already: nothing was killed"
        saved = sorted((output / "checkpoints").glob("step-*"))
        done = steps_in(output)
        assert saved == [] or int(saved[-1].name.split("-")[1]) >= done - 1
    subprocess.run(
        command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert metrics(output) == metrics(tmp_path / "whole")
    assert lines(output / "rollouts.jsonl") == lines(tmp_path / "whole/rollouts.jsonl")
    for name in ("policy-3", "policy-6", "policy"):
        file = Path(name, "adapter_model.safetensors")
        assert (output / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
