"""Settings of PPO's siblings: DPO, GRPO, RLOO and best-of-n."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from align.config.base import (
    AdapterOptim,
    DataSettings,
    EveryStep,
    GenerateSettings,
    LoraSettings,
    ModelSettings,
    OptimSettings,
    RunSettings,
)
from align.config.rl import SymbolicSettings, UserRewards


class DpoSettings(RunSettings):
    """Direct preference optimization (Rafailov et al. 2023), by TRL; the reference is the base."""

    model: ModelSettings
    data: DataSettings
    #: pairs that are measured at the end and never learned: their own file, or this many taken from ``data``
    eval_data: DataSettings | None = None
    holdout: int = Field(0, ge=0)
    optim: AdapterOptim = OptimSettings(lr=5e-6)
    lora: LoraSettings = LoraSettings()
    #: which annotator question decides the pairs; "preferred" = hallucination, then helpfulness
    target: str = "preferred"
    #: weight of the implicit KL penalty
    beta: float = Field(0.1, gt=0)
    #: sigmoid is DPO's own; ipo is taken over mean log-probabilities; robust allows for ``label_smoothing``
    loss_type: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    #: share of choices taken to be wrong; for loss_type robust
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    epochs: float = Field(1.0, gt=0)
    #: overrides ``epochs`` when set
    max_steps: int | None = Field(None, ge=1)
    #: pairs in a forward pass
    batch_size: int = Field(8, ge=1)
    grad_accum: int = Field(1, ge=1)
    #: pairs with a longer conversation (in tokens) are left out, none is cut
    max_length: int | None = Field(None, ge=8)
    bf16: bool = False
    gradient_checkpointing: bool = False
    #: encode every picture once and keep the frozen tower's features in memory
    cache_features: bool = False
    #: processes that open and preprocess pictures; 0 does it in the training process
    workers: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _smoothing(self) -> DpoSettings:
        if self.label_smoothing and self.loss_type != "robust":
            raise ValueError(
                f"label_smoothing is read by loss_type robust alone, not by {self.loss_type}; set loss_type, "
                "or leave label_smoothing at 0"
            )
        return self

    @model_validator(mode="after")
    def _one_heldout(self) -> DpoSettings:
        if self.eval_data is not None and self.holdout:
            raise ValueError(
                f"eval_data is what is held out, and holdout {self.holdout} would take more from data; leave "
                "one of them out"
            )
        return self


class GroupSettings(RunSettings):
    """What GRPO and RLOO share: several responses a prompt, judged against each other, no value model."""

    model: ModelSettings
    #: run directory (or its ``reward`` folder) of a reward model
    reward_model: str
    #: image root of the pictures that the reward model sees; None = those of ``data``
    reward_images: str | None = None
    data: DataSettings
    optim: AdapterOptim = OptimSettings(lr=3e-5, warmup_steps=5)
    lora: LoraSettings = LoraSettings()
    generate: GenerateSettings = GenerateSettings()
    symbolic: SymbolicSettings = SymbolicSettings()
    #: rewards of one's own by name; each is logged apart as reward/<name>
    user_rewards: UserRewards = {}
    #: multiplies the reward model's score before the symbolic rewards are added
    reward_scale: float = Field(1.0, gt=0)
    steps: int = Field(500, ge=1)
    #: responses of a step, of all its prompts together
    rollouts: int = Field(512, ge=2)
    #: responses to one prompt
    num_generations: int = Field(8, ge=2)
    #: passes over each step's responses (PPO's ``epochs``)
    num_iterations: int = Field(1, ge=1)
    #: responses per gradient step
    minibatch: int = Field(256, ge=1)
    #: responses per forward pass inside a gradient step (accumulated); None = minibatch
    micro_batch: int | None = Field(None, ge=1)
    clip: float = Field(0.2, gt=0)
    #: weight of the KL penalty; 0 computes no reference
    beta: float = Field(0.05, ge=0)
    bf16: bool = False
    gradient_checkpointing: bool = False
    log_every: EveryStep = 10

    @model_validator(mode="after")
    def _multiples(self) -> GroupSettings:
        for big, small in (
            ("rollouts", "num_generations"),
            ("rollouts", "minibatch"),
            ("minibatch", "micro_batch"),
        ):
            whole, part = getattr(self, big), getattr(self, small)
            if part is not None and whole % part:
                raise ValueError(f"{big} {whole} must be a multiple of {small} {part}; change one of them")
        if self.generate.temperature <= 0:
            raise ValueError(
                "generate.temperature is 0, so all responses to a prompt would be equal; use 1.0"
            )
        return self


class GrpoSettings(GroupSettings):
    """Group relative policy optimization (Shao et al. 2024), by TRL."""

    #: of k3, per token, in the loss
    beta: float = Field(0.04, ge=0)
    #: how the tokens' losses are averaged: grpo over each response first (the paper's), dapo over all tokens,
    #: dr_grpo over the longest length allowed
    loss_type: Literal["grpo", "dapo", "dr_grpo"] = "grpo"
    #: what divides the advantages: the standard deviation of their group (the paper's), of the batch, nothing
    scale_rewards: Literal["group", "batch", "none"] = "group"


class RlooSettings(GroupSettings):
    """REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024), by TRL."""

    #: of k1, summed over the response, in the reward
    beta: float = Field(0.05, ge=0)
    #: shift and scale the advantages of a step to mean 0 and deviation 1
    normalize_advantages: bool = False


class BestOfSettings(RunSettings):
    """Best-of-n: of n responses to each prompt, the one with the highest reward."""

    model: ModelSettings
    #: run directory (or its ``reward`` folder) of a reward model
    reward_model: str
    #: image root of the pictures that the reward model sees; None = those of ``data``
    reward_images: str | None = None
    data: DataSettings
    generate: GenerateSettings = GenerateSettings(max_new_tokens=128, temperature=0.7)
    #: rewards that need no model, as PPO adds them; None: none of them
    symbolic: SymbolicSettings | None = None
    #: rewards of one's own by name
    user_rewards: UserRewards = {}
    #: multiplies the reward model's score before the other rewards are added
    reward_scale: float = Field(1.0, gt=0)
    #: responses to each prompt
    n: int = Field(16, ge=2)

    @model_validator(mode="after")
    def _samples(self) -> BestOfSettings:
        if self.generate.temperature <= 0:
            raise ValueError("generate.temperature is 0, so all n responses would be equal; raise it")
        return self
