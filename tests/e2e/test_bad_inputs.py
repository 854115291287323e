"""What people get wrong: each ends with status 2 and one line that names the fault, before any output."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText

from data.processes import sole_writer

Command = Callable[..., int]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def fails(align: Command, capsys: Capture, tmp_path: Path) -> Callable[..., str]:
    """Run a stage that must fail: status 2, one line, nothing written. Returns the line."""

    def check(stage: str, *arguments: object) -> str:
        capsys.readouterr()
        output = tmp_path / "never"
        assert align(stage, f"output={output}", *arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("align: error: ")
        assert not output.exists()
        return lines[0]

    return check


def rewrite(photos: Path, name: str, target: Path, change: Callable[[list[dict[str, Any]]], object]) -> Path:
    rows = json.loads((photos / name).read_text())
    change(rows)
    target.write_text(json.dumps(rows))
    return target


@pytest.mark.parametrize(
    ("stage", "argument", "meant"),
    [
        ("sft", "optim.weight_decey=1", "weight_decay"),
        ("sft", "batchsize=4", "batch_size"),
        ("reward", "data.image=x", "images"),
        ("ppo", "kl_coeff=0.1", "kl_coef"),
        ("eval", "generate.max_tokens=4", "max_new_tokens"),
    ],
)
def test_an_unknown_key_names_the_nearest(
    fails: Callable[..., str], stage: str, argument: str, meant: str
) -> None:
    more = ["reward_model=x"] if stage == "ppo" else []
    line = fails(stage, argument, *more)
    assert argument in line
    assert f"did you mean '{meant}'?" in line


@pytest.mark.parametrize(
    ("stage", "file"), [("sft", "llava.json"), ("reward", "preferences.json"), ("ppo", "prompts.json")]
)
def test_a_missing_image(
    photos: Path, trained: dict[str, Path], fails: Callable[..., str], tmp_path: Path, stage: str, file: str
) -> None:
    data = rewrite(photos, file, tmp_path / file, lambda rows: rows[2].update(image="gone.jpg"))
    more = [f"reward_model={trained['plain']}"] if stage == "ppo" else []
    line = fails(stage, f"data.path={data}", "data.strict=true", *more)
    assert file in line and "gone.jpg" in line and "2" in line


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_a_truncated_image(
    photos: Path, trained: dict[str, Path], align: Command, capsys: Capture, tmp_path: Path, stage: str
) -> None:
    """Pictures are decoded when they are needed, so the run may have begun; the line names the file."""
    shutil.copytree(photos / "images", tmp_path / "images")
    picture = tmp_path / "images/rocket.jpg"
    picture.write_bytes(picture.read_bytes()[:2000])
    more = [f"reward_model={trained['plain']}"] if stage == "ppo" else []
    if stage == "reward":
        more = ["holdout=0"]
    capsys.readouterr()
    assert align(stage, f"output={tmp_path / 'o'}", f"data.images={tmp_path / 'images'}", *more) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "rocket.jpg" in lines[0]
    assert not (tmp_path / "o/DONE").exists()


def test_broken_json_names_file_and_line(photos: Path, fails: Callable[..., str], tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('[\n{"id": "a", "image": "rocket.jpg"},\n{"id": }\n]\n')
    assert f"{broken}:3" in fails("reward", f"data.path={broken}")


def test_a_broken_line_of_our_own_format(photos: Path, fails: Callable[..., str], tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    good = {
        "kind": "example",
        "id": "a",
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
    }
    lines.write_text(json.dumps(good) + "\n{oops\n")
    line = fails("sft", f"data.path={lines}", "data.format=null", "data.strict=true")
    assert f"{lines}:2" in line and "JSON" in line


def test_a_preference_without_two_responses(photos: Path, fails: Callable[..., str], tmp_path: Path) -> None:
    data = rewrite(photos, "preferences.json", tmp_path / "p.json", lambda rows: rows[1].pop("output_2"))
    line = fails("reward", f"data.path={data}", "data.strict=true")
    assert "p.json" in line and "output_2" in line
    ours = tmp_path / "p.jsonl"
    record = {
        "kind": "preference", "id": "a", "messages": [{"role": "user", "content": "Hi"}],
        "responses": [{"text": "one"}], "choices": {"overall": 0},
    }  # fmt: skip
    ours.write_text(json.dumps(record) + "\n")
    line = fails("reward", f"data.path={ours}", "data.format=null", "data.strict=true")
    assert f"{ours}:1" in line and "responses" in line


def test_facts_are_missing_for_a_model_that_reads_them(
    photos: Path, trained: dict[str, Path], fails: Callable[..., str]
) -> None:
    line = fails("reward", "facts=[captions]")
    assert "facts" in line and "p0" in line and "data.captions" in line
    line = fails("ppo", f"reward_model={trained['facts']}", "data.captions=null")
    assert "captions" in line and "r0" in line


def test_checkpoints_that_are_no_multimodal_models(
    photos: Path, fails: Callable[..., str], tmp_path: Path
) -> None:
    text_only = tmp_path / "text"
    text_only.mkdir()
    (text_only / "config.json").write_text('{"model_type": "llama"}')
    incomplete = tmp_path / "half"
    shutil.copytree(photos / "base", incomplete)
    for file in incomplete.glob("*.safetensors"):
        file.unlink()
    empty = tmp_path / "empty"
    empty.mkdir()
    wrong = {text_only: "takes no images", incomplete: "no weights", empty: "config.json is missing"}
    for path, rule in wrong.items():
        line = fails("sft", f"model.path={path}")
        assert str(path) in line and rule in line


def test_a_checkpoint_that_is_not_there(align: Command, capsys: Capture, tmp_path: Path) -> None:
    assert align("sft", f"output={tmp_path / 'o'}", f"model.path={tmp_path / 'nothing'}") == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"align: error: model.path: no such file or directory: {tmp_path / 'nothing'}"
    assert second.startswith("relative paths start at")


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry-run"])
@pytest.mark.parametrize("stage", ["sft", "sample", "reward", "ppo", "eval"])
def test_every_stage_checks_its_checkpoint(
    trained: dict[str, Path], fails: Callable[..., str], tmp_path: Path, stage: str, dry: tuple[str, ...]
) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text/config.json").write_text('{"model_type": "llama"}')
    more = [f"reward_model={trained['plain']}"] if stage == "ppo" else []
    assert "takes no images" in fails(stage, f"model.path={tmp_path / 'text'}", *more, *dry)


def test_a_folder_that_is_no_reward_model(photos: Path, fails: Callable[..., str]) -> None:
    line = fails("ppo", f"reward_model={photos / 'images'}")
    assert str(photos / "images") in line


@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["new", "resume"])
def test_a_run_directory_of_other_settings(
    trained: dict[str, Path], align: Command, capsys: Capture, resume: tuple[str, ...]
) -> None:
    run = trained["plain"]
    before = sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*"))
    capsys.readouterr()
    assert align("reward", f"output={run}", "optim.lr=0.5", *resume) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "belongs to other settings" in error and "optim.lr: 0.01 there, 0.5 now" in error
    assert align("sft", f"output={run}", *resume) == 2
    assert "holds a run of 'reward', not 'sft'" in capsys.readouterr().err
    assert sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*")) == before


def test_a_run_directory_is_not_overwritten(
    trained: dict[str, Path], align: Command, capsys: Capture
) -> None:
    capsys.readouterr()
    assert align("reward", f"output={trained['plain']}") == 2
    assert "add --resume" in capsys.readouterr().err


def test_a_folder_of_other_things_is_not_used(photos: Path, align: Command, capsys: Capture) -> None:
    capsys.readouterr()
    assert align("reward", f"output={photos / 'images'}") == 2
    assert "not empty and not a run directory" in capsys.readouterr().err
    assert not (photos / "images/settings.yaml").exists()


@pytest.mark.parametrize("stage", ["sft", "sample", "reward", "ppo", "eval"])
def test_every_stage_checks_its_adapter(
    trained: dict[str, Path],
    fails: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    """``runs/adapter`` looks like a Hub id; with ``runs`` there it is a path, and no weights are read."""
    read = AutoModelForImageTextToText
    monkeypatch.setattr(read, "from_pretrained", lambda *a, **k: pytest.fail("the base was loaded"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/bare").mkdir(parents=True)
    more = [f"reward_model={trained['plain']}"] if stage == "ppo" else []
    assert "runs/bare: adapter_config.json is missing" in fails(stage, "model.adapter=runs/bare", *more)


@pytest.mark.parametrize("stage", ["sft", "sample", "reward", "ppo", "eval"])
def test_a_run_has_one_writer(
    trained: dict[str, Path], align: Command, capsys: Capture, tmp_path: Path, stage: str
) -> None:
    """What a second ``--resume`` beside a running one meets."""
    more = [f"reward_model={trained['plain']}"] if stage == "ppo" else []
    run = tmp_path / "run"
    run.mkdir()
    capsys.readouterr()
    with sole_writer(run):
        assert align(stage, f"output={run}", *more, "--resume") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f"align: error: {run}: another process is writing this run" in lines[0]
    assert [entry.name for entry in run.iterdir()] == [".lock"]
