"""Settings of PPO and of its rewards."""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from align.config.base import (
    AdapterOptim,
    DataSettings,
    EveryStep,
    GenerateSettings,
    LoraSettings,
    ModelSettings,
    OptimSettings,
    RunSettings,
    Settings,
)

#: the rewards that are built in, as logged: reward/<name>
PARTS = ("model", "score", "reward_model", "correctness", "length", "incomplete")


class SymbolicSettings(Settings):
    """Symbolic rewards (thesis, 9.4; SPEC 8). Zero switches a part off."""

    #: multiple choice: added for the right option
    correct_choice: float = 2.0
    #: "no"-questions: plus for right, minus for wrong
    correct_no: float = 1.0
    #: "yes"-questions, likewise (the reference code gives nothing)
    correct_yes: float = 0.0
    #: per length class, times (response tokens / max_new_tokens)
    length: dict[Literal["general", "detail", "complex"], float] = {
        "general": -10.0,
        "detail": -40.0,
        "complex": 2.5,
    }
    #: added when the response has no end token
    incomplete: float = -8.0


class UserReward(Settings):
    """A reward of one's own: ``function(prompts, responses, **options)`` returns a number a response."""

    #: module:function, importable from the current directory or PYTHONPATH
    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")
    weight: float = Field(1.0, allow_inf_nan=False)
    #: further arguments, by name
    options: dict[str, bool | int | float | str | list[str]] = {}


def _named(rewards: dict[str, UserReward]) -> dict[str, UserReward]:
    for name in rewards:
        if name in PARTS or not re.fullmatch(r"[A-Za-z]\w*", name):
            raise ValueError(f"{name!r} is taken or no name; use letters, digits and _, and none of {PARTS}")
    return rewards


#: by name, as logged: reward/<name>
UserRewards: TypeAlias = Annotated[dict[str, UserReward], AfterValidator(_named)]


class PpoSettings(RunSettings):
    model: ModelSettings
    #: run directory (or its ``reward`` folder) of a reward model
    reward_model: str
    #: image root of the pictures that the reward model sees; None = those of ``data``
    reward_images: str | None = None
    data: DataSettings
    optim: AdapterOptim = OptimSettings(lr=3e-5, warmup_steps=5)
    #: learning rate of the value adapter and head; None = ``optim.lr``
    value_lr: float | None = Field(None, gt=0)
    lora: LoraSettings = LoraSettings()
    generate: GenerateSettings = GenerateSettings()
    symbolic: SymbolicSettings = SymbolicSettings()
    #: rewards of one's own by name; each is logged apart as reward/<name>
    user_rewards: UserRewards = {}
    steps: int = Field(500, ge=1)
    rollouts: int = Field(512, ge=2)
    #: passes over each batch of rollouts, and rollouts per gradient step
    epochs: int = Field(2, ge=1)
    minibatch: int = Field(256, ge=1)
    #: rollouts per forward pass inside a gradient step (accumulated exactly); None = minibatch
    micro_batch: int | None = Field(None, ge=1)
    #: run the layers again in the backward pass instead of keeping their activations
    gradient_checkpointing: bool = False
    #: split the frozen base over the processes (FSDP2); the adapters stay whole in each. For a base that does
    #: not fit one GPU: a layer's weights are then gathered for every token that is written
    shard_base: bool = False
    kl_coef: float = Field(0.1, ge=0)
    kl_form: Literal["k1", "k3"] = "k1"
    #: stop the run when the mean summed KL of a rollout batch exceeds this; 0 = never
    max_kl: float = Field(0.0, ge=0)
    gamma: float = Field(1.0, gt=0, le=1)
    lam: float = Field(1.0, ge=0, le=1)
    clip: float = Field(0.2, gt=0)
    value_clip: float = Field(0.2, gt=0)
    value_coef: float = Field(0.1, ge=0)
    #: multiplies the reward model's score before symbolic rewards and KL
    reward_scale: float = Field(1.0, gt=0)
    whiten_advantages: bool = True
    #: keep the adapter of every n-th step for later choice; 0 keeps the last only
    keep_every: int = Field(0, ge=0)
    #: rollouts of each step written to rollouts.jsonl
    dump_rollouts: int = Field(8, ge=0)
    #: a step is minutes of work with a large model, and its checkpoint holds adapters alone
    save_every: int = Field(1, ge=0)
    log_every: EveryStep = 10

    @model_validator(mode="after")
    def _whole_base(self) -> PpoSettings:
        if self.shard_base and self.model.bits:
            raise ValueError(
                f"shard_base splits weights of 16 or 32 bits, and model.bits is {self.model.bits}; "
                "drop one of them"
            )
        return self
