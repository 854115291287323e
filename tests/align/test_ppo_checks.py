"""What stops a PPO run before it loads its models, and before it goes on as another run."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from align import began
from align.actors import Actors
from align.began import base_digest, belongings, check_belongs
from align.checkpoint import CheckpointError
from align.config import ModelSettings, PpoSettings
from align.diagnose import PpoError
from align.ppo import Ppo, run
from align.ppo_checks import check, check_processes, check_same_step, read_prompts
from align.rollout_log import truncate_rollouts
from align.user_rewards import find_functions
from data.jsonl import DataError, read_json, write_json
from tests.align.test_ppo import settings, world  # noqa: F401


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue("world")


def processes(count: int) -> Any:
    return SimpleNamespace(num_processes=count)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"minibatch": 5}, "rollouts 12 is no multiple of minibatch 5.*set minibatch to 4"),
        ({"lora": {"r": 4, "dropout": 0.1}}, "lora.dropout is 0.1.*set it to 0"),
    ],
)
def test_settings_that_do_not_fit(folder: Path, tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    check(settings(folder, tmp_path))
    with pytest.raises(PpoError, match=text):
        check(settings(folder, tmp_path, **changes))


@pytest.mark.parametrize(
    ("count", "changes", "text"),
    [
        (1, {"shard_base": True}, "there is one; start two or more by torchrun"),
        (
            4,
            {"rollouts": 18, "minibatch": 6},
            "rollouts 18 must be a multiple of the 4 .*set it to 16",
        ),
        (4, {"minibatch": 6}, "minibatch 6 must be a multiple of the 4 processes; set it to 8"),
        (2, {"device": "cuda:0"}, "would put all 2 processes on one device; set it to auto"),
    ],
)
def test_settings_that_do_not_fit_the_processes(
    folder: Path, tmp_path: Path, count: int, changes: dict[str, Any], text: str
) -> None:
    device = changes.pop("device", "cpu")
    model = {"path": str(folder / "base"), "device": device}
    check_processes(settings(folder, tmp_path), processes(2))
    with pytest.raises(PpoError, match=text):
        check_processes(settings(folder, tmp_path, model=model, **changes), processes(count))


def test_a_split_base_in_one_process_stops_before_the_run_begins(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PpoError, match="start two or more"):
        run(settings(folder, tmp_path / "run", shard_base=True))
    assert not (tmp_path / "run").exists()


def test_processes_that_see_different_checkpoints() -> None:
    def gather(tensor: Any) -> Any:
        return tensor.new_tensor([int(tensor), 0])

    two: Any = SimpleNamespace(num_processes=2, gather=gather, device="cpu")
    check_same_step(0, two)
    with pytest.raises(PpoError, match=r"different steps \(3, 0\); output must be a directory that all"):
        check_same_step(3, two)


def test_a_picture_that_the_reward_model_would_miss(folder: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(folder / "images", images)
    read_prompts(settings(folder, tmp_path, reward_images=str(images)))
    (images / "green.png").unlink()
    with pytest.raises(DataError, match=r"reward_images.*in record 'q1'"):
        read_prompts(settings(folder, tmp_path, reward_images=str(images)))


def belongs(s: PpoSettings, count: int = 1) -> dict[str, Any]:
    return belongings(s, read_prompts(s), count)


def test_what_a_run_s_steps_follow_from(folder: Path, tmp_path: Path) -> None:
    s = settings(folder, tmp_path)
    then = belongs(s)
    check_belongs(then, belongs(s), tmp_path)
    with pytest.raises(CheckpointError, match=r"with 1 processes, and there are 2.*start it as then"):
        check_belongs(then, belongs(s, 2), tmp_path)
    # a checkpoint of an older version, which says less
    check_belongs({"processes": 1}, belongs(s), tmp_path)
    # an id, a question or a weight more or less
    reward = tmp_path / "reward"
    shutil.copytree(folder / "reward", reward)
    data = (reward / "head.safetensors").read_bytes()
    moved = settings(folder, tmp_path, reward_model=str(reward))
    check_belongs(then, belongs(moved), tmp_path)
    card = (reward / "README.md").read_text()
    (reward / "README.md").write_text(card + "more")
    check_belongs(then, belongs(moved), tmp_path)
    # an older folder, which does not say of itself what its weights were
    kept = {
        k: v
        for k, v in read_json(reward / "reward.json").items()
        if k not in ("fingerprint", "adapter_sha256")
    }
    write_json(reward / "reward.json", kept)
    then = belongs(moved)
    weights = (reward / "adapter_model.safetensors").read_bytes()
    (reward / "adapter_model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert data == (reward / "head.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="other reward model weights"):
        check_belongs(then, belongs(moved), tmp_path)


def test_weights_of_a_base_are_told_apart_by_any_tensor(tmp_path: Path) -> None:
    """Also by one in the midst of a large file, though it is not read whole."""
    rng = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(700_000, generator=rng) for name in ("first", "learned", "last")}
    file, model = tmp_path / "model.safetensors", ModelSettings(path=str(tmp_path))
    save_file(tensors, file)
    before = base_digest(model)
    (tmp_path / "README.md").write_text("a card")
    assert base_digest(model) == before
    for name in tensors:
        save_file(tensors | {name: tensors[name] + 1e-4}, file)
        assert base_digest(model) != before
    save_file(tensors, file)
    assert base_digest(model) == before
    file.rename(tmp_path / "model-00001-of-00001.safetensors")
    assert base_digest(model) != before
    file.write_bytes(b"torn")
    base_digest(model)


def test_a_run_does_not_go_on_from_another_adapter_of_the_same_place(folder: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "sft"
    adapter.mkdir()
    weights = adapter / "adapter_model.safetensors"
    save_file({"a": torch.zeros(4)}, weights)
    model = {"path": str(folder / "base"), "device": "cpu", "adapter": str(adapter)}
    then = belongs(settings(folder, tmp_path, model=model))
    check_belongs(then, belongs(settings(folder, tmp_path, model=model)), tmp_path)
    # elsewhere they are the same weights
    adapter.rename(tmp_path / "moved")
    moved = model | {"adapter": str(tmp_path / "moved")}
    check_belongs(then, belongs(settings(folder, tmp_path, model=moved)), tmp_path)
    adapter.mkdir()
    save_file({"a": torch.ones(4)}, weights)
    with pytest.raises(CheckpointError, match="was made with other model weights, so"):
        check_belongs(then, belongs(settings(folder, tmp_path, model=model)), tmp_path)


def test_the_base_of_the_reward_model_counts(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "base", tmp_path / "base")
    shutil.copytree(folder / "reward", tmp_path / "reward")
    info = read_json(tmp_path / "reward/reward.json")
    write_json(tmp_path / "reward/reward.json", info | {"model": {"path": str(tmp_path / "base")}})
    s = settings(folder, tmp_path, reward_model=str(tmp_path / "reward"))
    then, file = belongs(s), tmp_path / "base/model.safetensors"
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(CheckpointError, match="with other weights of the reward model's base, so"):
        check_belongs(then, belongs(s), tmp_path)


def test_a_hub_id_counts_with_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = ["one"]
    monkeypatch.setattr(began, "read_config", lambda _: SimpleNamespace(_commit_hash=commit[-1]))
    model = ModelSettings(path="owner/name", adapter="owner/adapter")
    then = base_digest(model)
    assert base_digest(model) == then != base_digest(ModelSettings(path="owner/name"))
    commit.append("two")
    assert base_digest(model) != then


def test_other_code_of_a_reward_of_ones_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "rewards_that_change.py"
    module.write_text("def brief(prompts, responses):\n    return [-len(r) for r in responses]\n")
    rewards = {"brief": {"function": "rewards_that_change:brief"}}
    s = settings(folder, tmp_path, user_rewards=rewards)
    find_functions(s.user_rewards)
    then = belongs(s)
    assert "code of the user rewards" not in belongs(settings(folder, tmp_path))
    check_belongs(then, belongs(s), tmp_path)
    module.write_text(module.read_text().replace("-len", "-2 * len"))
    with pytest.raises(CheckpointError, match="with other code of the user rewards, so"):
        check_belongs(then, belongs(s), tmp_path)


def test_a_run_does_not_go_on_with_other_prompts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "prompts.jsonl"
    data.write_bytes((folder / "prompts.jsonl").read_bytes())
    changes = {"data": {"path": str(data), "images": str(folder / "images")}, "save_every": 1, "steps": 2}
    real = Ppo.roll_out

    def dies(self: Ppo, step: int) -> Any:
        if step == 1:
            raise KeyboardInterrupt
        return real(self, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Ppo, "roll_out", dies)
        run(settings(folder, tmp_path / "run", **changes))
    monkeypatch.setattr(Actors, "load", lambda *_: pytest.fail("models were loaded"))
    whole = data.read_text()
    data.write_text("".join(whole.splitlines(keepends=True)[1:]))
    with pytest.raises(CheckpointError, match=r"step-00000001-000: was made with other prompts; other pict"):
        run(settings(folder, tmp_path / "run", resume=True, **changes))
    # what is asked is the same, and what the rewards come of is not
    for old, new in (
        ("A cat.", "A dog."),
        ('"answer_type": "no"', '"answer_type": "yes"'),
        ("red.png", "blue.png"),
    ):
        assert old in whole
        data.write_text(whole.replace(old, new))
        with pytest.raises(
            CheckpointError, match=r"000: was made with other pictures, facts or kinds of the"
        ):
            run(settings(folder, tmp_path / "run", resume=True, **changes))


def test_rollouts_torn_inside_a_character(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    whole = '{"step": 1, "response": "ä"}\n'.encode()
    path.write_bytes(whole + '{"step": 2, "response": "ö'.encode()[:-1])
    truncate_rollouts(path, 2)
    assert path.read_bytes() == whole
