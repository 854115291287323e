"""Rewards that the user writes, named in a recipe as module:function."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from align.config import ConfigError, PpoSettings, UserReward, resolve
from align.ppo import run
from align.rewards import RewardPartError
from align.user_rewards import find_functions, user_parts
from data.schema import Prompt
from tests.align.test_ppo import lines, settings, world  # noqa: F401

MODULE = '''
"""Somebody's own rewards."""

class Words:
    @staticmethod
    def count(prompts, responses, word="a"):
        return [response.split().count(word) for response in responses]

def short(prompts, responses):
    return [-float(len(response)) for response in responses]

def one_too_few(prompts, responses):
    return [1.0] * (len(responses) - 1)

def broken(prompts, responses):
    return [float("nan") if prompt.id == "q1" else 0.0 for prompt in prompts]

def lonely(prompts):
    return [0.0 for _ in prompts]

def counted(prompts, responses, n=1):
    return [float(sum(range(n))) for _ in responses]

def nothing(prompts, responses):
    pass

number = 3
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current directory."""
    name = f"own_rewards_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


PROMPTS = [Prompt(id=f"q{i}", image=None, question="What?") for i in range(3)]


def test_weights_and_options(module: str) -> None:
    wanted = {
        "cats": UserReward(function=f"{module}:Words.count", weight=2.0, options={"word": "cat"}),
        "short": UserReward(function=f"{module}:short", weight=0.5),
    }
    found = user_parts(find_functions(wanted), wanted, PROMPTS, ["a cat", "cat and cat", ""])
    assert torch.equal(found["cats"], torch.tensor([2.0, 4.0, 0.0]))
    assert torch.equal(found["short"], torch.tensor([-2.5, -5.5, 0.0]))


@pytest.mark.parametrize(
    ("function", "text"),
    [
        ("{}:missing", "has no 'missing'; check the name"),
        ("{}:number", "is no function"),
        ("no_such_module_here:f", "PYTHONPATH"),
        ("{}:lonely", "cannot be called with (prompts, responses) and the options []"),
    ],
)
def test_a_function_that_is_not_there_stops_before_anything_loads(
    module: str, tmp_path: Path, request: pytest.FixtureRequest, function: str, text: str
) -> None:
    folder = request.getfixturevalue("world")
    rewards = {"mine": {"function": function.format(module)}}
    s = settings(folder, tmp_path / "run", user_rewards=rewards, dry_run=True)
    with pytest.raises(RewardPartError, match=r"user_rewards\.mine") as told:
        run(s)
    assert text in str(told.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("one_too_few", "user_rewards.mine: 2 values for 3 responses"),
        ("nothing", "user_rewards.mine: 0 values for 3 responses (it returned a NoneType)"),
        ("broken", "user_rewards.mine: nan for prompt 'q1'; return a finite number"),
    ],
)
def test_values_that_cannot_be_used(module: str, name: str, text: str) -> None:
    wanted = {"mine": UserReward(function=f"{module}:{name}")}
    with pytest.raises(RewardPartError, match="mine") as told:
        user_parts(find_functions(wanted), wanted, PROMPTS, ["x", "y", "z"])
    assert text in str(told.value)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def f(:", "SyntaxError"),
        ("f = nowhere", "NameError"),
        ("table = {}['words']", "KeyError: 'words'"),
        ("open('no such list of words')", "FileNotFoundError"),
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
    ],
)
def test_a_module_that_does_not_load_is_named(module: str, tmp_path: Path, code: str, said: str) -> None:
    torn = f"{module}_torn"
    (tmp_path / f"{torn}.py").write_text(code)
    importlib.invalidate_caches()
    with pytest.raises(RewardPartError, match=r"user_rewards\.mine\.function") as told:
        find_functions({"mine": UserReward(function=f"{torn}:f")})
    assert f"{torn} does not load ({said}" in str(told.value) and str(told.value).endswith("; mend it")


def test_whole_numbers_stay_whole(module: str) -> None:
    wanted = {"mine": UserReward(function=f"{module}:counted", options={"n": 4})}
    assert user_parts(find_functions(wanted), wanted, PROMPTS[:1], ["x"])["mine"].tolist() == [6.0]


def test_names_that_are_taken() -> None:
    given = ["output=x", "model.path=x", "reward_model=x", "data.path=x"]
    for name, function in (("length", "a:b"), ("score", "a:b"), ("a/b", "a:b"), ("mine", "just_a_module")):
        with pytest.raises(ConfigError, match="user_rewards"):
            resolve(PpoSettings, None, [*given, f"user_rewards={{{name}: {{function: '{function}'}}}}"])


def test_a_reward_of_ones_own_enters_the_sum_and_is_logged_apart(
    module: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue("world")
    rewards = {"brevity": {"function": f"{module}:short", "weight": 0.25}}
    s = settings(folder, tmp_path / "run", steps=1, user_rewards=rewards, reward_scale=3.0, dump_rollouts=12)
    run(s)
    rows = lines(tmp_path / "run/rollouts.jsonl")
    assert len(rows) == 12
    for row in rows:
        assert row["parts"]["brevity"] == pytest.approx(-0.25 * len(row["response"]))
        assert row["reward"] == pytest.approx(3 * row["score"] + sum(row["parts"].values()), abs=1e-4)
    (line,) = lines(tmp_path / "run/metrics.jsonl")
    mean = sum(row["parts"]["brevity"] for row in rows) / 12
    assert line["reward/brevity"] == pytest.approx(mean, abs=1e-4)
    assert line["reward/model"] == pytest.approx(3 * line["objective/scores"], abs=1e-4)
