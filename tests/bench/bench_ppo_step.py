"""One step of PPO with the pictures' features computed once, and computed again by every role."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from align import ppo
from align.checkpoint import RunDir
from align.config import LoraSettings, ModelSettings, PpoSettings
from align.generate import Generated
from align.ppo import Ppo, read_prompts
from align.reward_model import RewardInfo, RewardModel
from tests.bench.measure import show, side_by_side

ROLLOUTS = 32


@pytest.fixture
def trainer(base: Path, world: Path, tmp_path: Path) -> Ppo:
    """Policy, value and reward model (with five captions as facts) on one base."""
    info = RewardInfo(model=ModelSettings(path=str(base), device="cpu"), facts=["captions"])
    RewardModel.start(info, LoraSettings(r=32), ("Yes", "No")).save(tmp_path / "reward", "a card")
    settings = PpoSettings.model_validate({
        "output": str(tmp_path / "run"),
        "model": {"path": str(base), "device": "cpu"},
        "reward_model": str(tmp_path / "reward"),
        "data": {"path": str(world / "prompts.jsonl"), "images": str(world)},
        "lora": {"r": 32},
        "generate": {"max_new_tokens": 24, "batch_size": ROLLOUTS},
        "rollouts": ROLLOUTS,
        "minibatch": ROLLOUTS // 2,
        "micro_batch": 16,
        "epochs": 2,
        "optim": {"lr": 1e-12},
        "report_to": [],
    })  # fmt: skip
    run = RunDir.create(settings.output, settings, "ppo")
    return Ppo(settings, read_prompts(settings), Accelerator(cpu=True), run)


def test_steps_a_second(trainer: Ppo, monkeypatch: pytest.MonkeyPatch) -> None:
    scores: dict[str, float] = {}
    real = ppo.rollout_tokens

    def forgetting(*arguments: Any, **options: Any) -> Generated:
        """What was sampled, without the features that the other roles could reuse."""
        made = real(*arguments, **options)
        made.features = None
        return made

    def step(name: str) -> float:
        _, sampled, rollout = trainer.roll_out(0)
        trainer.update(0, sampled, rollout)
        scores[name] = float(rollout.scores.mean())
        return 1

    def once() -> float:
        return step("once")

    def again() -> float:
        with monkeypatch.context() as patch:
            patch.setattr(ppo, "rollout_tokens", forgetting)
            patch.setattr(ppo, "encode_pictures", lambda _lmm, _renderer, pictures: list(pictures))
            return step("again")

    def rollout_only() -> float:
        trainer.roll_out(0)
        return 1

    rates = side_by_side({"features once": once, "features by every role": again})
    title = (
        f"PPO: {ROLLOUTS} rollouts of 24 tokens, 2 epochs, policy, reference, value and reward on one base"
    )
    show(title, "steps/s", rates)
    assert scores["once"] == pytest.approx(scores["again"], abs=1e-4)
    whole, rollout = 1 / rates["features once"], 1 / side_by_side({"": rollout_only}, repeats=3)[""]
    print(
        f"  a step takes {whole:.2f} s: {rollout:.2f} s to sample and judge, {whole - rollout:.2f} s to learn"
    )
