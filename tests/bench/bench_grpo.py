"""A rollout of our PPO against one of TRL's GRPO: sampled, scored, and learned from twice.

Both have one base, LoRA adapters of one size, the same prompts and reward model, and draw the same tokens:
GRPO is made to sample what PPO has sampled. GRPO has policy and reference; PPO trains a value model beside.
"""

from __future__ import annotations

import functools
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import LogitsProcessorList, PrinterCallback, TrainerCallback

from align import group_rl
from align.checkpoint import RunDir
from align.config import GrpoSettings
from align.models.lmm import load
from align.ppo import Ppo
from align.render import Renderer
from tests.bench.bench_ppo_reference import LLAVA, WORLD, Forced, build
from tests.bench.conftest import Shape
from tests.bench.measure import show

#: responses to a prompt, for both
GENERATIONS = 8
REPEATS = 5


class InTurns(TrainerCallback):
    """CPU seconds of each of GRPO's steps, and of a step of PPO ahead of each."""

    def __init__(self, ours: Ppo, updates: int) -> None:
        self.ours, self.updates = ours, updates
        self.start = ours.actors.weights()
        self.seconds: dict[str, list[float]] = {"PPO": [], "GRPO": []}
        self.tokens = {"PPO": 0, "GRPO": 0}
        self.parts: list[float] = []
        self.policy: Any = None
        self.generate: Any = None
        self.trainer: Any = None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.policy = self.trainer.model
        self.generate = self.policy.generate
        self.step_of_ours()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.updates:
            return
        self.seconds["GRPO"].append(time.process_time() - self.since)
        made = self.trainer._buffered_inputs
        self.tokens["GRPO"] = sum(int(batch["completion_mask"].sum()) for batch in made)
        assert self.tokens["GRPO"] == self.tokens["PPO"]
        if state.global_step < state.max_steps:
            self.step_of_ours()

    def step_of_ours(self) -> None:
        """A step of PPO; GRPO's next responses are its."""
        self.ours.actors.put(self.start)
        self.ours.training.optimizer.state.clear()
        began = time.process_time()
        _, sampled, rollout = self.ours.roll_out(0)
        rolled = time.process_time()
        self.ours.update(0, sampled, rollout)
        self.since = time.process_time()
        self.seconds["PPO"].append(self.since - began)
        self.parts = [rolled - began, self.since - rolled]
        self.tokens["PPO"], self.lengths = int(rollout.mask.sum()), sorted(rollout.mask.sum(1).tolist())
        forced = LogitsProcessorList([Forced(rollout.response_ids)])
        self.policy.generate = functools.partial(self.generate, logits_processor=forced)
        self.since = time.process_time()


def race(world: Path, folder: Path, shape: Shape, mean_share: float, title: str) -> float:
    """Print how both do; returns our seconds a rollout by GRPO's."""
    ours = build(world, folder, shape, mean_share)
    s = ours.settings
    ours.prompts = ours.prompts[: shape.rollouts // GENERATIONS]
    # TRL samples all responses of a step together
    ours.settings.generate.batch_size = shape.rollouts
    settings = GrpoSettings.model_validate({
        **s.model_dump(include={"model", "data", "lora", "generate", "optim", "symbolic", "reward_model",
                                "rollouts", "minibatch", "micro_batch"}),
        "output": str(folder / "grpo"),
        "num_generations": GENERATIONS,
        "num_iterations": 2,
        "beta": 0.04,
        "steps": REPEATS + 1,
        "save_every": 0,
        "report_to": [],
    })  # fmt: skip
    turns = InTurns(ours, group_rl.updates_of(settings))
    lmm = load(settings.model)
    with RunDir.create(settings.output, settings, "grpo") as run:
        turns.trainer = group_rl.build(lmm, Renderer(lmm.processor), settings, ours.prompts, run)
        turns.trainer.remove_callback(PrinterCallback)
        turns.trainer.add_callback(turns)
        turns.trainer.train()
    took = {name: statistics.median(found[1:]) for name, found in turns.seconds.items()}
    show(title, "rollouts/s", {name: shape.rollouts / seconds for name, seconds in took.items()})
    print(f"  both drew {turns.tokens['PPO']} tokens, in the last round {turns.lengths}")
    rolled, learned = turns.parts
    print(f"  PPO's last step: {rolled:.2f} s to sample and judge, {learned:.2f} s to learn")
    ratio = took["PPO"] / took["GRPO"]
    print(f"  PPO takes {ratio:.2f} times GRPO's seconds a rollout")
    return ratio


def test_lengths_of_the_thesis(world: Path, tmp_path: Path) -> None:
    """Responses of very unequal lengths: TRL pads a step's to the longest, ours are put with their like."""
    assert race(world, tmp_path, LLAVA, 1 / 6, "lengths and proportions of LLaVA-1.5-7B") <= 1


@pytest.mark.parametrize("share", [0.45, 1.0], ids=["medium", "full"])
def test_large_tower(world: Path, tmp_path: Path, share: float) -> None:
    """With little or nothing to pad the value model's passes are seen: PPO takes longer."""
    race(world, tmp_path, WORLD, share, f"large tower, responses of {share:.0%} of the longest")
