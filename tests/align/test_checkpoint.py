"""Run directories: whole checkpoints or none, one set of settings, exact restarts."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from align import checkpoint
from align.checkpoint import CheckpointError, RunDir
from align.config import DataSettings, ModelSettings, RunSettings, SftSettings, resolve


def _settings(**changes: object) -> SftSettings:
    values: dict[str, object] = {
        "output": "anywhere",
        "model": ModelSettings(path="m"),
        "data": DataSettings(path="d"),
        "report_to": [],
    }
    return SftSettings.model_validate(values | changes)


def _write(text: str):  # type: ignore[no-untyped-def]
    return lambda folder: (folder / "weights").write_text(text)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    with RunDir.create(tmp_path / "run", _settings(), "sft") as run:
        yield run


def _again(run: RunDir, settings: SftSettings, stage: str = "sft") -> RunDir:
    """The next start in the same directory, once the first has let go of it."""
    run.close()
    return RunDir.create(run.path, settings, stage)


def _run_script(code: str) -> subprocess.CompletedProcess[str]:
    """Code in a process of its own, with this checkout's packages."""
    environment = os.environ | {"PYTHONPATH": str(Path(checkpoint.__file__).resolve().parent.parent)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


# --- whose directory it is ---


def test_a_new_run_records_what_it_was_told(run: RunDir) -> None:
    assert resolve(SftSettings, run.path / "settings.yaml") == _settings()
    meta = json.loads((run.path / "meta.json").read_text())
    assert meta["stage"] == "sft"
    assert meta["starts"][0]["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_an_earlier_run_needs_resume(run: RunDir) -> None:
    with pytest.raises(CheckpointError, match="--resume"):
        _again(run, _settings())
    _again(run, _settings(resume=True))
    assert len(json.loads((run.path / "meta.json").read_text())["starts"]) == 2


@pytest.mark.parametrize("resume", [True, False])
def test_other_settings_are_refused_and_named(run: RunDir, resume: bool) -> None:
    before = (run.path / "settings.yaml").read_bytes()
    other = _settings(resume=resume, batch_size=3, optim={"lr": 1e-3}, data={"path": "d", "images": "i"})
    with pytest.raises(CheckpointError) as caught:
        _again(run, other)
    text = str(caught.value)
    for part in (
        "batch_size: 16 there, 3 now",
        "optim.lr: 2e-05 there, 0.001 now",
        "data.images: None there, 'i' now",
    ):
        assert part in text
    assert "epochs" not in text and "resume:" not in text
    assert (run.path / "settings.yaml").read_bytes() == before


def test_a_section_that_appears_is_a_difference(run: RunDir) -> None:
    with pytest.raises(CheckpointError, match=r"lora\.r: 'unset' there, 8 now"):
        _again(run, _settings(resume=True, lora={"r": 8}))


def test_where_and_how_a_run_is_carried_out_may_change(run: RunDir) -> None:
    other = _settings(
        output="elsewhere",
        resume=True,
        dry_run=True,
        threads=2,
        report_to=["tensorboard"],
        workers=2,
        model={"path": "m", "device": "cpu"},
    )
    again = _again(run, other)
    assert again.path == run.path and len(json.loads((run.path / "meta.json").read_text())["starts"]) == 2


@pytest.mark.parametrize("key", ["log_every", "save_every"])
def test_what_changes_the_metrics_may_not(run: RunDir, key: str) -> None:
    """Every saved step of SFT is logged too, so that a resumed run writes the same numbers."""
    with pytest.raises(CheckpointError, match=rf"other settings \({key}: \d+ there, 3 now\)"):
        _again(run, _settings(resume=True, **{key: 3}))


def test_a_setting_added_since_counts_with_its_default(run: RunDir) -> None:
    recorded = run.path / "settings.yaml"
    recorded.write_text("".join(x for x in recorded.read_text().splitlines(True) if "grad_accum" not in x))
    _again(run, _settings(resume=True)).close()
    recorded.write_text(recorded.read_text() + "gone: 1\n")
    with pytest.raises(CheckpointError, match="not settings of this version"):
        _again(run, _settings(resume=True))


def test_another_stage_is_refused(run: RunDir) -> None:
    with pytest.raises(CheckpointError, match="a run of 'sft', not 'reward'"):
        _again(run, _settings(resume=True), "reward")


@pytest.mark.parametrize("resume", [True, False])
def test_somebody_elses_files_are_refused(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="not a run directory"):
        RunDir.create(tmp_path, _settings(resume=resume), "sft")
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_as_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(CheckpointError, match="give a directory"):
        RunDir.create(tmp_path / "f", _settings(), "sft")


def test_resume_starts_where_nothing_is_there(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "new", _settings(resume=True), "sft")
    assert run.latest_checkpoint() is None and run.metrics() == []


def test_killed_between_the_first_two_files(run: RunDir) -> None:
    (run.path / "settings.yaml").unlink()
    _again(run, _settings())
    assert (run.path / "settings.yaml").exists()


# --- one writer ---


def test_a_second_writer_is_refused_until_the_first_has_ended(run: RunDir) -> None:
    lock = run.path / ".lock"
    before = (run.path / "meta.json").read_bytes(), lock.stat().st_mtime_ns
    refused = f"{run.path}: another process is writing this run; wait .* choose another output"
    # neither opening files again nor going back in the metrics lets go
    run.log(1, loss=1.0)
    run.truncate_metrics(0)
    with pytest.raises(CheckpointError, match=refused):
        RunDir.create(run.path, _settings(resume=True), "sft")
    assert before == ((run.path / "meta.json").read_bytes(), lock.stat().st_mtime_ns)
    with RunDir(run.path, _settings()):
        pass  # a further process of the same run holds nothing, so it lets go of nothing
    with pytest.raises(CheckpointError, match=refused):
        RunDir.create(run.path, _settings(resume=True), "sft")
    run.close()
    with RunDir.create(run.path, _settings(resume=True), "sft") as second:
        second.done()
        RunDir.create(run.path, _settings(resume=True), "sft").close()


def test_a_refused_start_lets_go(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    run.close()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_environment", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError) as caught:
            RunDir.create(run.path, _settings(resume=True), "sft")
    with RunDir.create(run.path, _settings(resume=True), "sft"):
        assert caught.tb is not None  # the failed start's frames are still alive


# --- checkpoints ---


def test_newest_is_kept_and_found_by_number(run: RunDir) -> None:
    for step in (9, 10, 123_456_789):
        path = run.save_checkpoint(step, _write(str(step)))
        assert run.latest_checkpoint() == path
        assert checkpoint.checkpoint_step(path) == step
        assert (path / "weights").read_text() == str(step)
    assert len(list((run.path / "checkpoints").iterdir())) == 1


def test_keep_more(run: RunDir) -> None:
    for step in (1, 2, 3):
        run.save_checkpoint(step, _write(str(step)), keep=2)
    names = sorted((e / "weights").read_text() for e in (run.path / "checkpoints").iterdir())
    assert names == ["2", "3"]


def test_saving_a_step_again_takes_the_new_one(run: RunDir) -> None:
    for text in ("first", "second", "third"):
        latest = run.save_checkpoint(5, _write(text))
    assert run.latest_checkpoint() == latest and (latest / "weights").read_text() == "third"
    assert checkpoint.checkpoint_step(latest) == 5


def test_an_error_while_saving_leaves_the_previous_one(run: RunDir) -> None:
    first = run.save_checkpoint(1, _write("good"))

    def fail(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run.save_checkpoint(2, fail)
    assert run.latest_checkpoint() == first
    assert (first / "weights").read_text() == "good"
    assert list((run.path / "checkpoints").iterdir()) == [first]


def test_a_kill_while_saving_leaves_the_previous_one(run: RunDir) -> None:
    first = run.save_checkpoint(1, _write("good"))
    script = f"""
        import os, signal
        from align.checkpoint import RunDir
        from align.config import SftSettings, resolve
        settings = resolve(SftSettings, {str(run.path / "settings.yaml")!r}, ["resume=true"])
        run = RunDir.create({str(run.path)!r}, settings, "sft")
        def write(folder):
            (folder / "weights").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        run.save_checkpoint(2, write)
    """
    run.close()
    assert _run_script(script).returncode == -9
    assert len(list((run.path / "checkpoints").iterdir())) == 2  # the half one is there, hidden
    again = _again(run, _settings(resume=True))
    assert again.latest_checkpoint() == first and (first / "weights").read_text() == "good"
    second = again.save_checkpoint(2, _write("whole"))
    assert list((run.path / "checkpoints").iterdir()) == [second]


def test_a_name_that_is_no_checkpoint() -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint directory"):
        checkpoint.checkpoint_step(Path("runs/x/final"))


# --- metrics ---


def test_metrics_come_back(run: RunDir) -> None:
    run.log(1, loss=0.1, **{"objective/kl": torch.tensor(2.0)}, note="x", n=np.int64(3), ok=True)
    run.log(2, loss=float("nan"), low=-math.inf)
    first, second = run.metrics()
    assert first == {"step": 1, "loss": 0.1, "objective/kl": 2.0, "note": "x", "n": 3, "ok": True}
    assert math.isnan(second["loss"]) and second["low"] == -math.inf
    for line in (run.path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_metrics_are_on_disk_at_once(run: RunDir) -> None:
    run.log(1, loss=1.0)
    assert (run.path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 1.0}\n'


def test_a_vector_is_no_metric(run: RunDir) -> None:
    with pytest.raises(TypeError, match="number"):
        run.log(1, loss=[1.0])


def test_resume_forgets_what_it_will_write_again(run: RunDir) -> None:
    for step in range(1, 6):
        run.log(step, loss=step / 3)
    run.truncate_metrics(3)
    run.log(4, loss=math.nan)
    run.truncate_metrics(4)
    run.log(5, loss=0.5)
    assert [entry["step"] for entry in run.metrics()] == [1, 2, 3, 4, 5]
    assert run.metrics()[2]["loss"] == 1.0
    assert math.isnan(run.metrics()[3]["loss"]) and run.metrics()[4]["loss"] == 0.5


def test_a_line_torn_by_a_kill_is_dropped(run: RunDir) -> None:
    run.log(1, loss=1.0)
    run.close()
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert [entry["step"] for entry in run.metrics()] == [1]
    again = _again(run, _settings(resume=True))
    again.log(2, loss=2.0)
    assert [entry["step"] for entry in again.metrics()] == [1, 2]


def test_a_damaged_line_is_named(run: RunDir) -> None:
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl:2: not JSON"):
        run.metrics()


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunDir.create(tmp_path / "run", _settings(report_to=["tensorboard"]), "sft") as run:
        for step in (1, 2, 3):
            run.log(step, loss=float(step), note="words stay out")
    with RunDir.create(run.path, _settings(report_to=["tensorboard"], resume=True), "sft") as run:
        run.truncate_metrics(1)
        run.log(2, loss=20.0)
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 20.0)]


def test_done(run: RunDir) -> None:
    assert not run.is_done
    run.done()
    with RunDir.create(run.path, _settings(resume=True), "sft") as again:
        assert again.is_done


# --- tensors, optimizers, generators ---


def test_tensors_round_trip(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "whole": base,
        "view": base.T,
        "same": base,
        "half": base.to(torch.bfloat16),
        "one": torch.tensor(3),
    }
    checkpoint.save_tensors(tmp_path / "t.safetensors", tensors)
    loaded = checkpoint.load_tensors(tmp_path / "t.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), name
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.safetensors"]


def test_damaged_tensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.load_tensors(path)
    checkpoint.save_tensors(path, {"a": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"t\.safetensors: not a readable"):
        checkpoint.load_tensors(path)


def _steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor) -> torch.Tensor:
    for row in inputs:
        optimizer.zero_grad()
        model(row).square().sum().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_optimizer_goes_on_exactly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(6, 4)
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    _steps(model, optimizer, inputs[:3])
    checkpoint.save_tensors(tmp_path / "m", model.state_dict())
    checkpoint.save_state(tmp_path / "o", optimizer.state_dict())
    straight = _steps(model, optimizer, inputs[3:])
    other = torch.nn.Linear(4, 2)
    other.load_state_dict(checkpoint.load_tensors(tmp_path / "m"))
    fresh = torch.optim.AdamW(other.parameters(), lr=7.0)
    fresh.load_state_dict(checkpoint.load_state(tmp_path / "o"))
    assert torch.equal(_steps(other, fresh, inputs[3:]), straight)


def test_state_never_runs_code(tmp_path: Path) -> None:
    torch.save({"a": RunSettings(output="x")}, tmp_path / "o")
    with pytest.raises(CheckpointError, match="not readable as tensors and plain values"):
        checkpoint.load_state(tmp_path / "o")
    (tmp_path / "o").write_bytes(b"")
    with pytest.raises(CheckpointError, match="not readable"):
        checkpoint.load_state(tmp_path / "o")


def test_progress_is_silent_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(checkpoint.progress([1, 2], "x")) == [1, 2]
    with checkpoint.progress(3, "x") as bar:
        bar.update()
    assert list(checkpoint.progress(3, "x")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
