"""A rollout of our PPO against one of TRL's GRPO: sampled, scored, and learned from twice.

Both have one base, the same LoRA adapters, prompts, reward model and number of tokens. GRPO has a policy and a
reference; PPO trains a value model beside.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import TrainerCallback

from align import group_rl
from align.checkpoint import RunDir
from align.config import GrpoSettings, LoraSettings, ModelSettings, PpoSettings
from align.models.lmm import load
from align.ppo import Ppo, read_prompts
from align.render import Renderer
from align.reward_model import RewardInfo, RewardModel
from data.jsonl import read_records, write_records
from tests.bench.conftest import SIDE, build_base, end_after
from tests.bench.measure import show

ROLLOUTS, GENERATIONS, TOKENS, REPEATS = 32, 8, 24, 5


@pytest.fixture
def shared(world: Path, tmp_path: Path) -> dict[str, Any]:
    """What both are told: a base whose responses never end, four prompts for eight responses each."""
    base = build_base(world, tmp_path / "base", SIDE, 16)
    end_after(base, world, 1, TOKENS)
    info = RewardInfo(model=ModelSettings(path=str(base), device="cpu"), facts=["captions"])
    RewardModel.start(info, LoraSettings(r=32), ("Yes", "No")).save(tmp_path / "reward", "a card")
    prompts = list(read_records(world / "prompts.jsonl", "prompt"))[: ROLLOUTS // GENERATIONS]
    write_records(tmp_path / "prompts.jsonl", prompts)
    return {
        "model": {"path": str(base), "device": "cpu"},
        "reward_model": str(tmp_path / "reward"),
        "data": {"path": str(tmp_path / "prompts.jsonl"), "images": str(world)},
        "lora": {"r": 32},
        "generate": {"max_new_tokens": TOKENS, "batch_size": ROLLOUTS},
        "rollouts": ROLLOUTS,
        "minibatch": ROLLOUTS // 2,
        "optim": {"lr": 1e-12},
        "report_to": [],
        "save_every": 0,
    }


def of_ppo(shared: dict[str, Any], output: Path, micro: int) -> Callable[[], int]:
    """One step; returns the tokens sampled."""
    values = {"output": str(output), "micro_batch": micro, "epochs": 2, **shared}
    settings = PpoSettings.model_validate(values)
    run = RunDir.create(settings.output, settings, "ppo")
    trainer = Ppo(settings, read_prompts(settings), Accelerator(cpu=True), run)

    def step() -> int:
        _, sampled, rollout = trainer.roll_out(0)
        trainer.update(0, sampled, rollout)
        return int(rollout.mask.sum())

    return step


class InTurns(TrainerCallback):
    """CPU seconds of each of GRPO's steps; between two of them ``other`` has its turn."""

    def __init__(self, updates: int, other: Callable[[], int]) -> None:
        self.updates, self.other = updates, other
        self.seconds: dict[str, list[float]] = {"GRPO": [], "PPO": []}
        self.tokens: list[int] = []
        self.since = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.since = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.updates:
            return
        now = time.process_time()
        self.seconds["GRPO"].append(now - self.since)
        self.tokens.append(self.other())
        self.since = time.process_time()
        self.seconds["PPO"].append(self.since - now)


@pytest.mark.parametrize("micro", [16, 4])
def test_seconds_a_rollout(shared: dict[str, Any], tmp_path: Path, micro: int) -> None:
    values = {"output": str(tmp_path / "grpo"), "micro_batch": micro, "num_iterations": 2, **shared}
    settings = GrpoSettings.model_validate(
        values | {"num_generations": GENERATIONS, "beta": 0.04, "steps": REPEATS + 1}
    )
    turns = InTurns(group_rl.updates_of(settings), of_ppo(shared, tmp_path / "ppo", micro))
    lmm = load(settings.model)
    with RunDir.create(settings.output, settings, "grpo") as run:
        trainer = group_rl.build(lmm, Renderer(lmm.processor), settings, group_rl.read_prompts(settings), run)
        trainer.add_callback(turns)
        trainer.train()
        lengths = [line["response/length"] for line in run.metrics()]
    assert lengths == [TOKENS] * (REPEATS + 1)
    assert turns.tokens == [TOKENS * ROLLOUTS] * (REPEATS + 1)
    assert torch.get_num_threads() == 1
    # the first round of each is not counted
    rates = {name: ROLLOUTS / statistics.median(found[1:]) for name, found in turns.seconds.items()}
    title = (
        f"{ROLLOUTS} rollouts of {TOKENS} tokens, scored, 2 passes, {micro} a forward pass with gradients: "
        "TRL's GRPO (beta > 0) and our PPO, with its value model"
    )
    show(title, "rollouts/s", {name: rates[name] for name in ("PPO", "GRPO")})
    print(f"  PPO takes {rates['GRPO'] / rates['PPO']:.2f} times GRPO's seconds a rollout")
