"""The command line: what reaches a stage, and what a person reads when something is wrong."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from align.config import EvalSettings, SftSettings
from apps import cli


class OwnError(RuntimeError):
    pass


OwnError.__module__ = "align.somewhere"


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Put a recorder (or a raiser) in a stage's place: nothing heavy is imported."""

    def install(name: str, effect: BaseException | object = None) -> list[Any]:
        seen: list[Any] = []

        def run(settings: Any) -> object:
            seen.append(settings)
            if isinstance(effect, BaseException):
                raise effect
            return effect

        module = types.ModuleType(name)
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
        return seen

    return install


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text("")
    (tmp_path / "pics").mkdir()
    (tmp_path / "sft.yaml").write_text(
        "output: out\nmodel: {path: org/model}\ndata: {path: train.jsonl, images: pics}\n"
    )
    return "sft.yaml"


def test_settings_reach_the_stage(
    recipe: str, stage: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    seen = stage("align.sft", Path("out/model"))
    arguments = [
        "sft",
        recipe,
        "seed=3",
        "--output",
        "2026",
        "optim.lr=1e-3",
        "--limit",
        "5",
        "--resume",
        "epochs=2",
    ]
    assert cli.main(arguments) == 0
    (settings,) = seen
    assert isinstance(settings, SftSettings)
    assert (settings.seed, settings.output, settings.optim.lr) == (3, "2026", 1e-3)
    assert (settings.data.limit, settings.resume, settings.dry_run, settings.epochs) == (5, True, False, 2.0)
    assert capsys.readouterr().out == "done: out/model\n"


def test_quotes_in_a_directory_name(recipe: str, stage: Callable[..., list[Any]]) -> None:
    seen = stage("align.sft")
    assert cli.main(["sft", recipe, "--output", "it's: a [dir]"]) == 0
    assert seen[0].output == "it's: a [dir]"


def test_eval_limit_is_its_own_setting(recipe: str, stage: Callable[..., list[Any]]) -> None:
    seen = stage("apps.evaluate")
    named = ["output=o", "model.path=org/m", "benchmarks.pope_random=train.jsonl"]
    assert cli.main(["eval", *named, "--limit", "7"]) == 0
    assert isinstance(seen[0], EvalSettings) and seen[0].limit == 7


def test_dry_run_prints_the_whole_plan(
    recipe: str, stage: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    seen = stage("align.sft")
    assert cli.main(["sft", recipe, "--dry-run"]) == 0
    assert seen[0].dry_run
    *plan, last = capsys.readouterr().out.splitlines()
    assert SftSettings.model_validate(yaml.safe_load("\n".join(plan))) == seen[0]
    assert "nothing was computed" in last


def test_threads_are_set_before_torch_loads(
    recipe: str, stage: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    stage("align.sft")
    cli.main(["sft", recipe, "threads=3"])
    assert cli.os.environ["OMP_NUM_THREADS"] == "3"


def test_shipped_recipe_by_name(
    recipe: str, stage: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    seen = stage("align.sft")
    paths = ["data.path=train.jsonl", "data.images=pics"]
    assert cli.main(["sft", "llava15_7b/sft", *paths]) == 0
    assert seen[0].model.path == "llava-hf/llava-1.5-7b-hf"
    assert cli.main(["sft", "llava15_7b/stf"]) == 2
    assert "llava15_7b/sft," in capsys.readouterr().err


def test_wrong_settings_are_one_line_and_load_nothing(
    recipe: str, stage: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    seen = stage("align.sft")
    assert cli.main(["sft", recipe, "bacth_size=3"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "did you mean 'batch_size'?" in err and "Traceback" not in err
    assert seen == []


@pytest.mark.parametrize(
    ("argument", "key"),
    [
        ("data.path=[train.jsonl, gone.jsonl]", "data.path"),
        ("data.images=gone", "data.images"),
        ("data.captions=gone.json", "data.captions"),
        ("eval_data.path=gone.jsonl", "eval_data.path"),
        ("model.path=./gone", "model.path"),
        ("model.path=runs/a/model", "model.path"),
        ("model.adapter=runs/a/adapter", "model.adapter"),
        ("model.adapter=[org/a, runs/b/adapter]", "model.adapter"),
        ("model.path=gone", "model.path"),
        # one slash, as in a Hub id; but the first folder is here
        ("model.path=pics/model", "model.path"),
        ("model.adapter=pics/adapter", "model.adapter"),
    ],
)
def test_missing_files_are_named_with_their_key(
    recipe: str, stage: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str], argument: str, key: str
) -> None:
    seen = stage("align.sft")
    assert cli.main(["sft", recipe, argument]) == 2
    assert f"{key}: no such file or directory: " in capsys.readouterr().err
    assert seen == []


def test_missing_reward_model_and_benchmark(
    recipe: str, stage: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    stage("align.ppo"), stage("apps.evaluate")
    base = ["output=o", "model.path=org/m"]
    assert cli.main(["ppo", *base, "data.path=train.jsonl", "reward_model=gone"]) == 2
    assert "reward_model: no such" in capsys.readouterr().err
    assert (
        cli.main(["eval", *base, "benchmarks={pope_random: gone.jsonl}", "images=nowhere", "world=flat"]) == 2
    )
    err = capsys.readouterr().err
    assert "benchmarks.pope_random: no such" in err and "images: no such" in err and "world: no such" in err


@pytest.mark.parametrize("error", [OwnError("the rule; the mend"), FileNotFoundError("the rule; the mend")])
def test_known_errors_are_messages(
    recipe: str,
    stage: Callable[..., list[Any]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    stage("align.sft", error)
    assert cli.main(["sft", recipe]) == 2
    assert capsys.readouterr().err == "align: error: the rule; the mend\n"
    monkeypatch.setenv("ALIGN_DEBUG", "1")
    with pytest.raises(type(error)):
        cli.main(["sft", recipe])


@pytest.mark.parametrize(
    "arguments",
    [["demo", "--quick", "--output", "{}/demo"], ["data", "contact-sheet", "{}/x.png"],
     ["data", "world", "{}/w", "--scale", "0.001"], ["data", "inspect", "{}/x"]],
    ids=lambda arguments: " ".join(arguments[:2]),
)  # fmt: skip
def test_a_path_below_a_file_is_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    command = [text.format(file) for text in arguments]
    assert cli.main(command) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"align: error: {file}") and line.count("\n") == 1
    assert "ot a directory" in line and "; " in line and "Errno" not in line
    monkeypatch.setenv("ALIGN_DEBUG", "1")
    with pytest.raises((OSError, ValueError)):
        cli.main(command)


def test_errors_of_the_system_without_a_path(
    recipe: str, stage: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    stage("align.sft", OSError(28, "No space left on device"))
    assert cli.main(["sft", recipe]) == 2
    assert capsys.readouterr().err == "align: error: [Errno 28] No space left on device\n"


def test_data_and_checkpoint_errors_are_known() -> None:
    from align.checkpoint import CheckpointError
    from align.config import ConfigError
    from data.jsonl import DataError

    assert all(cli._is_message(error) for error in (CheckpointError("x"), ConfigError("x"), DataError("x")))


def test_a_defect_keeps_its_traceback(recipe: str, stage: Callable[..., list[Any]]) -> None:
    stage("align.sft", ValueError("shapes differ"))
    with pytest.raises(ValueError, match="shapes differ"):
        cli.main(["sft", recipe])


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_interrupt_says_how_to_continue(
    recipe: str, stage: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str], resume: list[str]
) -> None:
    stage("align.sft", KeyboardInterrupt())
    assert cli.main(["sft", recipe, "train_parts=[vision, projector]", *resume]) == 130
    err = capsys.readouterr().err
    assert f"continue with: align sft {recipe} 'train_parts" in err
    assert err.count("--resume") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["sft"],
        ["sft", "r.yaml", "--limit", "0"],
        ["sft", "r.yaml", "--fast"],
        ["study", "none"],
        ["data"],
    ],
)
def test_usage_errors_exit_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2


def test_data_commands_are_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    from apps import data_look, world_commands

    called: list[str] = []
    monkeypatch.setattr(data_look, "inspect", lambda args: called.append(f"inspect {args.src}") or 1)
    monkeypatch.setattr(world_commands, "run", lambda args: called.append(args.data_command))
    assert cli.main(["data", "inspect", "x.jsonl"]) == 1
    assert cli.main(["data", "contact-sheet", "sheet.png"]) == 0
    assert called == ["inspect x.jsonl", "contact-sheet"]


def test_demo_and_study_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    import apps

    seen: list[Any] = []
    demo = types.ModuleType("apps.demo")
    demo.run = lambda **kw: seen.append(kw)  # type: ignore[attr-defined]
    study = types.ModuleType("apps.studies.rlhf")
    study.main = lambda argv: seen.append(argv)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apps.demo", demo)
    monkeypatch.setattr(apps, "demo", demo, raising=False)
    monkeypatch.setitem(sys.modules, "apps.studies.rlhf", study)
    assert cli.main(["demo", "--quick", "--seed", "4", "--output", "d"]) == 0
    assert cli.main(["study", "rlhf", "--seeds", "3", "--help"]) == 0
    assert seen == [{"output": Path("d"), "seed": 4, "quick": True}, ["--seeds", "3", "--help"]]
    # each in a folder of its own: the one after the other is what people do
    assert [cli.main(words) for words in (["demo", "--quick"], ["demo"])] == [0, 0]
    assert [str(one["output"]) for one in seen[2:]] == ["runs/demo-quick", "runs/demo"]


@pytest.mark.parametrize("arguments", [["--help"], ["sft", "--help"], ["study", "--help"], ["demo", "-h"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 0
    assert "usage: align" in capsys.readouterr().out
