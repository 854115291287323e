"""Rounds: what each stage is given, how prompts are dealt, what stops at once; and two rounds end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from align.config import (
    ConfigError,
    EvalSettings,
    ModelSettings,
    PpoSettings,
    RewardSettings,
    RoundsSettings,
    SampleSettings,
    resolve,
)
from align.config.rounds import EvalRound, PpoRound, RewardRound, SampleRound
from apps import cli
from apps.rounds import run as rounds
from apps.rounds.checks import RoundsError
from apps.rounds.prompts import shares
from apps.rounds.run import launch
from apps.rounds.stages import (
    eval_settings,
    policy_after,
    ppo_settings,
    reward_settings,
    sample_settings,
)
from apps.shipped import RECIPES
from data.jsonl import DataError, read_json, read_records, write_records
from data.schema import HALLUCINATION, Preference, Prompt

ROOT = Path(cli.__file__).parent.parent


def settings(output: Path | str = "out", **changes: Any) -> RoundsSettings:
    fixed: dict[str, Any] = {
        "output": str(output), "rounds": 3, "seed": 5, "threads": 1, "report_to": [],
        "model": {"path": "base", "adapter": "sft", "dtype": "bfloat16"},
        "prompts": {"path": "asked.jsonl", "images": "pictures"},
        "labels": {"by": "file"}, "eval": {"benchmarks": {"pope_random": "pope.jsonl"}},
    }  # fmt: skip
    return RoundsSettings.model_validate(fixed | changes)


# --- settings ---


@pytest.mark.parametrize(
    ("section", "stage"),
    [
        (SampleRound, SampleSettings),
        (RewardRound, RewardSettings),
        (PpoRound, PpoSettings),
        (EvalRound, EvalSettings),
    ],
)
def test_a_section_has_the_stages_own_defaults(section: Any, stage: Any) -> None:
    filled = {name for name, field in section.model_fields.items() if field.exclude}
    assert {"output", "seed", "resume", "dry_run", "threads", "report_to", "model"} <= filled
    for name, field in stage.model_fields.items():
        if name not in filled:
            assert section.model_fields[name].default == field.default, name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ppo.output=x", "'ppo': output is filled in by the rounds; leave it out"),
        ("reward.model.path=x", "'reward': model is filled in by the rounds"),
        ("ppo.optim.lrr=1", "unknown key 'lrr' in section 'ppo.optim'; did you mean 'lr'"),
        ("labels.by=simulated", "'labels': simulated labelers need world"),
        ("labels.file=labels.jsonl", "would be the same for all rounds; put {round} in it"),
    ],
)
def test_recipes_that_cannot_be(given: str, message: str) -> None:
    base = ["output=out", "model.path=m", "prompts.path=p", "labels.by=file"]
    with pytest.raises(ConfigError) as caught:
        resolve(RoundsSettings, None, [*base, given])
    assert message in str(caught.value)


def test_settings_read_back_as_they_were_written() -> None:
    given = settings(ppo={"steps": 7}, sample={"responses": 4})
    written = yaml.safe_dump(given.model_dump(mode="json"))
    assert "filled in" not in written
    assert RoundsSettings.model_validate(yaml.safe_load(written)) == given


def test_what_the_stages_of_a_round_are_given() -> None:
    given = settings(ppo={"steps": 7, "optim": {"lr": 1e-4}})
    model = {"path": "base", "dtype": "bfloat16"}
    earlier = ["sft", "out/round-1/ppo/policy"]
    sample, reward, ppo = (f(given, 2) for f in (sample_settings, reward_settings, ppo_settings))
    assert sample.model == reward.model == ppo.model == ModelSettings(**model, adapter=earlier)
    assert (sample.output, reward.output, ppo.output) == tuple(
        f"out/round-2/{stage}" for stage in ("sample", "reward", "ppo")
    )
    assert {s.seed for s in (sample, reward, ppo)} == {7} and ppo.resume and ppo.threads == 1
    assert (sample.data.path, sample.data.images) == ("out/round-2/prompts.jsonl", "pictures")
    assert ppo.data == sample.data and ppo.reward_model == "out/round-2/reward"
    assert reward.data.path == ["out/round-1/labels/labels.jsonl", "out/round-2/labels/labels.jsonl"]
    assert (ppo.steps, ppo.optim.lr) == (7, 1e-4)
    measured = [eval_settings(given, n) for n in (0, 2)]
    assert [m.model and m.model.adapters for m in measured] == [
        ["sft"], [*earlier, "out/round-2/ppo/policy"]
    ]  # fmt: skip
    assert [m.output for m in measured] == ["out/start/eval", "out/round-2/eval"]
    assert measured[0].seed == measured[1].seed == 5


def test_ppo_may_start_anew_each_round() -> None:
    given = settings(start="first", pairs="newest", ppo_prompts={"path": "others.jsonl", "images": "more"})
    assert sample_settings(given, 3).model.adapters == ["sft", "out/round-2/ppo/policy"]
    assert ppo_settings(given, 3).model.adapters == reward_settings(given, 3).model.adapters == ["sft"]
    assert policy_after(given, 3).adapters == ["sft", "out/round-3/ppo/policy"]
    assert reward_settings(given, 3).data.path == ["out/round-3/labels/labels.jsonl"]
    asked = ppo_settings(given, 3).data
    assert (asked.path, asked.images) == ("out/round-3/ppo_prompts.jsonl", "more")


def test_the_reward_model_may_have_another_base() -> None:
    other = {"path": "larger", "adapter": "its_sft", "bits": 4}
    given = settings(reward_base=other)
    assert reward_settings(given, 2).model == ModelSettings.model_validate(other)
    assert ppo_settings(given, 2).model.path == "base"


# --- prompts ---


def test_every_round_has_prompts_of_its_own() -> None:
    found = shares(11, settings(), "prompts")
    assert [len(share) for share in found] == [3, 3, 3]
    assert all(share == sorted(share) for share in found)
    assert len({i for share in found for i in share}) == 9
    assert found != [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert found == shares(11, settings(), "prompts") != shares(11, settings(seed=6), "prompts")
    both = settings(ppo_prompts={"path": "asked.jsonl"})
    assert shares(11, both, "ppo_prompts") != found
    some = settings(prompts={"path": "p", "per_round": 2})
    assert [len(share) for share in shares(11, some, "prompts")] == [2, 2, 2]


def test_or_the_same_ones() -> None:
    same = settings(prompts={"path": "p", "fresh": False})
    assert shares(4, same, "prompts") == [[0, 1, 2, 3]] * 3
    some = settings(prompts={"path": "p", "fresh": False, "per_round": 2})
    first, second, third = shares(4, some, "prompts")
    assert first == second == third and len(first) == 2


@pytest.mark.parametrize("prompts", [{"per_round": 4}, {"fresh": False, "per_round": 12}])
def test_too_few_prompts(prompts: dict[str, Any]) -> None:
    with pytest.raises(
        DataError, match=r"prompts: 11 prompts are too few for 3 rounds of (4|12); lower per_"
    ):
        shares(11, settings(prompts={"path": "p"} | prompts), "prompts")
    with pytest.raises(DataError, match="2 prompts are too few for 3 rounds;"):
        shares(2, settings(), "prompts")


# --- other processes ---


def test_ppo_in_processes_of_its_own(tmp_path: Path) -> None:
    given = ppo_settings(settings(tmp_path / "out", launch=["x"]), 1)
    script = tmp_path / "launcher"
    script.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/told\nmkdir -p {given.output}\ntouch {given.output}/DONE\n'
    )
    script.chmod(0o755)
    launch([str(script), "--nproc", "2"], given)
    recipe = f"{given.output}.yaml"
    told = (tmp_path / "told").read_text().split()
    assert told == ["--nproc", "2", "-m", "apps.cli", "ppo", recipe, "--resume"]
    assert resolve(PpoSettings, recipe) == given
    script.write_text("#!/bin/sh\nexit 9\n")
    with pytest.raises(RoundsError, match="round-1/ppo: PPO ended with status 9"):
        launch([str(script)], given)


# --- end to end ---


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from align.models.tiny import build_tiny_llava

    return build_tiny_llava(tmp_path_factory.mktemp("base") / "base")


Recipe = Callable[..., Path]


@pytest.fixture(scope="module")
def recipe(base: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """``recipe(**changes)``: a file of two small rounds on the world, whose sections ``changes`` add to."""

    def write(**changes: Any) -> Path:
        short = {"max_new_tokens": 6, "batch_size": 16}
        small = {"lora": {"r": 2}, "save_every": 1}
        values: dict[str, Any] = {
            "output": "unset", "rounds": 2, "threads": 1, "report_to": [],
            "model": {"path": str(base), "device": "cpu"},
            "prompts": {"path": str(world / "pairs.jsonl"), "images": str(world)},
            "ppo_prompts": {"path": str(world / "prompts.jsonl"), "images": str(world)},
            "labels": {"by": "simulated", "world": str(world)},
            "sample": {"generate": short | {"temperature": 1.0}},
            "reward": small | {"holdout": 0, "batch_size": 4, "optim": {"lr": 1e-2}},
            "ppo": small | {
                "generate": short, "steps": 2, "rollouts": 4, "minibatch": 4, "optim": {"lr": 1e-2},
                "symbolic": {"length": {}, "incomplete": -1.0},
            },
        }  # fmt: skip
        for key, value in changes.items():
            values[key] = values[key] | value if isinstance(values.get(key), dict) and value else value
        path = tmp_path_factory.mktemp("recipe") / "rounds.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def policies(output: Path) -> list[bytes]:
    return [(output / f"round-{n}/ppo/policy/adapter_model.safetensors").read_bytes() for n in (1, 2)]


def test_two_rounds_and_the_same_after_a_kill(
    recipe: Recipe, base: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = {
        "benchmarks": {"pope_random": str(world / "eval/pope_random.jsonl")}, "images": str(world),
        "pope_prefix": "images", "limit": 4, "bootstrap": 100,
        "generate": {"max_new_tokens": 2, "temperature": 0.0},
    }  # fmt: skip
    command = ["rounds", str(recipe(eval=measured))]
    killed = subprocess.Popen(
        [sys.executable, "-m", "apps.cli", *command, "--output", str(tmp_path / "killed")],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert cli.main([*command, "--output", str(tmp_path / "whole")]) == 0
    told = capsys.readouterr().out
    # while PPO of the second round is at work, or right after
    mark, ended = tmp_path / "killed/round-2/ppo/metrics.jsonl", time.monotonic() + 120
    while not mark.exists():
        assert killed.poll() is None and time.monotonic() < ended
        time.sleep(0.005)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed/DONE").exists()
    assert cli.main([*command, "--output", str(tmp_path / "killed"), "--resume"]) == 0
    assert policies(tmp_path / "killed") == policies(tmp_path / "whole")
    assert len(set(policies(tmp_path / "whole"))) == 2
    same = (tmp_path / "killed/metrics.jsonl").read_text()
    assert same == (tmp_path / "whole/metrics.jsonl").read_text()
    assert [row["step"] for row in map(json.loads, same.splitlines())] == [1, 2]

    output = tmp_path / "whole"
    manifest = read_json(output / "rounds.json")
    made = [str(output / f"round-{n}/ppo/policy") for n in (1, 2)]
    assert manifest["policy"] == {"path": str(base), "adapter": made}
    assert f"model.path={base} 'model.adapter=[{made[0]}, {made[1]}]'" in told
    assert [entry["prompts"] for entry in manifest["rounds"]] == [6, 6]
    assert manifest["rounds"][1]["ppo"] == {"steps": 2, "stopped": None}
    asked = [{r.id for r in read_records(output / f"round-{n}/prompts.jsonl")} for n in (1, 2)]
    assert not asked[0] & asked[1]
    # the second reward model has learned from both rounds' labels, and PPO was watched
    labels = [r.id for n in (1, 2) for r in read_records(output / f"round-{n}/labels/labels.jsonl")]
    assert {name.split("/")[0] for name in labels} == {"round-1", "round-2"}
    reward = yaml.safe_load((output / "round-2/reward/settings.yaml").read_text())
    assert len(reward["data"]["path"]) == 2 and reward["model"]["adapter"] == made[:1]
    page = (output / "round-2/ppo/rollouts.html").read_text()
    assert ">finished<" in page and page.count('<img src="data:image/') == 8
    models = read_json(output / "report/results.json")["models"]
    assert list(models) == ["start", "round 1", "round 2"]
    # nothing is left to do
    assert cli.main([*command, "--output", str(output), "--resume"]) == 0


def labelled(samples: Path) -> list[Preference]:
    """A person's choices: the first response of each pair."""
    read = read_records(samples, "preference")
    return [r.model_copy(update={"choices": {HALLUCINATION: 0}, "annotator": "me"}) for r in read]  # type: ignore[misc]


def test_rounds_wait_for_people(recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_file = {"by": "file", "world": None, "file": str(tmp_path / "from people/{round}.jsonl")}
    one = str(recipe(labels=by_file, ppo_prompts=None))
    command = ["rounds", one, "ppo.steps=1", "reward.holdout=2", "--output", str(tmp_path / "out")]
    resumed = [*command, "--resume"]
    for number in (1, 2):
        samples = tmp_path / f"out/round-{number}/sample/samples.jsonl"
        for _ in range(2):  # asking again changes nothing
            assert cli.main(resumed) == 3
            told = capsys.readouterr().out
            file = tmp_path / f"from people/{number}.jsonl"
            assert f"round {number} waits for labels: {len(read_records(samples))} records" in told
            assert f"to be labelled:     {samples}" in told and f"labels awaited in:  {file} (" in told
            continued = told.strip().splitlines()[-1]
            assert continued.startswith("  then continue with: align rounds ")
            assert continued.endswith(
                f"rounds.yaml ppo.steps=1 reward.holdout=2 --output {tmp_path}/out --resume"
            )
        assert not (tmp_path / f"out/round-{number}/reward").exists()
        if number == 1:  # too few, and then mended
            write_records(file, labelled(samples)[:2])
            assert cli.main(resumed) == 2
            assert "of 2 pairs leaves too few" in capsys.readouterr().err
        write_records(file, labelled(samples))
    assert cli.main(resumed) == 0
    found = [entry["labels"]["file"] for entry in read_json(tmp_path / "out/rounds.json")["rounds"]]
    assert found == [str(tmp_path / f"from people/{n}.jsonl") for n in (1, 2)]
    kept = read_records(tmp_path / "out/round-2/labels/labels.jsonl", "preference")
    assert all(r.annotator == "me" and r.preferred == 0 and r.facts.captions for r in kept)  # type: ignore[union-attr]


# --- what stops at once ---


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("model.path=/nowhere", "model.path: no such file or directory: /nowhere"),
        ("model.adapter=/nowhere", "model.adapter: no such file or directory: /nowhere"),
        ("reward_base.path=/nowhere", "reward_base.path: no such file or directory: /nowhere"),
        ("prompts.path=/nowhere", "prompts.path: no such file or directory: /nowhere"),
        ("ppo_prompts.images=/nowhere", "ppo_prompts.images: no such file or directory: /nowhere"),
        ("labels.world=/nowhere", "/nowhere/scenes.jsonl: no such file"),
        ("prompts.per_round=7", "12 prompts are too few for 2 rounds of 7"),
        ("rounds=13", "12 prompts are too few for 13 rounds"),
        ("ppo.generate.temperature=0", "generate.temperature is 0; PPO samples"),
        ("ppo.minibatch=99", "rollouts 4 is no multiple of minibatch 99"),
        ("sample.generate.temperature=0", "all responses would be the same; use 0.7"),
        ("sample.responses=3", "sample.responses is 3, and simulated labelers compare two"),
        ("reward.holdout=4", "holdout 4 is more than half of the 6 pairs that a round can have"),
        ("reward.facts=[rationales]", "the reward model reads facts (rationales)"),
        ("launch=[no-such-program]", "no program 'no-such-program' is installed"),
        ("eval.benchmarks={pope_random: /nowhere}", "/nowhere: no such file"),
        ("report_to=[wandb]", "pip install wandb"),
    ],
)
def test_bad_settings_stop_before_anything_is_computed(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    given: str, message: str,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(rounds, "go", lambda *_: pytest.fail("it began"))
    command = ["rounds", str(recipe()), given, "--output", str(tmp_path / "out")]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("align: error: ")
    assert not (tmp_path / "out").exists()


def test_prompts_of_another_world_stop_at_once(recipe: Recipe, tmp_path: Path) -> None:
    write_records(tmp_path / "p.jsonl", [Prompt(id=f"q{i}", question="What?") for i in range(4)])
    given = resolve(RoundsSettings, recipe(), [f"prompts.path={tmp_path}/p.jsonl", f"output={tmp_path}/out"])
    with pytest.raises(
        DataError, match=r"labels\.world: 4 prompts are of no scene of .* \(the first: 'q0'\)"
    ):
        rounds.run(given)


def test_a_dry_run_computes_nothing(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["rounds", str(recipe()), "--output", str(tmp_path / "out"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "dry run: settings and data are fine" in told and "filled in" not in told
    assert not (tmp_path / "out").exists()


# --- the shipped recipes ---


@pytest.mark.parametrize(
    ("name", "section", "stage", "other", "differ"),
    [
        ("world/rounds", "ppo", PpoSettings, "world/ppo_fact", {"steps", "save_every"}),
        ("world/rounds", "reward", RewardSettings, "world/reward_fact", {"holdout"}),
        ("world/rounds", "sample", SampleSettings, "world/sample", set()),
        ("world/rounds", "eval", EvalSettings, "world/eval", {"benchmarks"}),
        ("llava15_7b/rounds", "ppo", PpoSettings, "llava15_7b/ppo_8gpus", {"steps", "keep_every"}),
        ("llava15_7b/rounds", "reward", RewardSettings, "llava15_13b/reward_fact", set()),
    ],
)
def test_recipes_agree_with_those_of_the_stages(
    name: str, section: str, stage: Any, other: str, differ: set[str]
) -> None:
    ours = getattr(resolve(RoundsSettings, RECIPES / f"{name}.yaml"), section).model_dump()
    theirs = resolve(stage, RECIPES / f"{other}.yaml").model_dump()
    assert {key for key in ours if ours[key] != theirs[key]} == differ


def test_the_7b_policy_is_judged_by_13b_reward_models() -> None:
    given = resolve(RoundsSettings, RECIPES / "llava15_7b/rounds.yaml")
    policy = resolve(PpoSettings, RECIPES / "llava15_7b/ppo.yaml")
    reward = resolve(RewardSettings, RECIPES / "llava15_13b/reward_fact.yaml")
    assert reward_settings(given, 2).model == reward.model
    assert ppo_settings(given, 1).model.adapters == policy.model.adapters
