"""Settings of the stages ahead of reinforcement learning: SFT, sampling, reward model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from align.config.base import (
    AdapterOptim,
    DataSettings,
    FactKind,
    GenerateSettings,
    LoraSettings,
    ModelSettings,
    OptimSettings,
    RunSettings,
)
from align.template import check_template


class SftSettings(RunSettings):
    model: ModelSettings
    data: DataSettings
    eval_data: DataSettings | None = None
    optim: OptimSettings = OptimSettings()
    #: parts that learn in full; ignored for the language model when ``lora`` is set
    train_parts: list[Literal["vision", "projector", "language"]] = ["projector", "language"]
    lora: LoraSettings | None = None
    epochs: float = Field(1.0, gt=0)
    #: overrides ``epochs`` when set
    max_steps: int | None = Field(None, ge=1)
    batch_size: int = Field(16, ge=1)
    grad_accum: int = Field(1, ge=1)
    max_length: int | None = Field(None, ge=8)
    bf16: bool = False
    gradient_checkpointing: bool = False
    #: encode every picture once and keep the frozen tower's features in memory
    cache_features: bool = False
    #: processes that open and preprocess pictures; 0 does it in the training process
    workers: int = Field(0, ge=0)


class RewardSettings(RunSettings):
    model: ModelSettings
    data: DataSettings
    #: held-out pairs: their own file, or this many taken from ``data`` (thesis: 500)
    eval_data: DataSettings | None = None
    holdout: int = Field(500, ge=0)
    optim: AdapterOptim = OptimSettings()
    lora: LoraSettings = LoraSettings()
    #: fact kinds shown after the response; empty = a plain reward model
    facts: list[FactKind] = []
    #: at most this many entries of each fact kind (thesis: 5 captions, 3 rationales)
    max_facts: dict[FactKind, Annotated[int, Field(ge=1)]] = {"captions": 5, "rationales": 3}
    #: which annotator question trains it; "preferred" = hallucination, then helpfulness
    target: str = "preferred"
    #: the evaluation turn; None takes the default wording. ``{facts}`` marks where the facts stand,
    #: ``{response}`` where the response is read once more (helps small models)
    template: str | None = None
    #: words whose embeddings' difference starts the score head, e.g. ["yes", "no"]; None = zeros
    head_init: tuple[str, str] | None = None
    head_init_scale: float = 0.1
    #: weight of |mean reward| in the loss
    centre: float = Field(1e-3, ge=0)
    epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, ge=1)
    batch_size: int = Field(32, ge=1)
    grad_accum: int = Field(1, ge=1)
    #: run the layers again in the backward pass instead of keeping their activations
    gradient_checkpointing: bool = False
    #: optimizer steps between held-out evaluations (early stopping keeps the best)
    eval_every: int = Field(50, ge=1)
    max_length: int | None = Field(None, ge=8)
    bf16: bool = False

    @field_validator("template")
    @classmethod
    def _places(cls, template: str | None, info: ValidationInfo) -> str | None:
        if template is not None:
            check_template(template, info.data.get("facts", ()))
        return template


class SampleSettings(RunSettings):
    """Responses of a model to prompts: what annotators compare (thesis: two, at temperature 0.7)."""

    model: ModelSettings
    data: DataSettings
    generate: GenerateSettings = GenerateSettings(max_new_tokens=128, temperature=0.7)
    responses: int = Field(2, ge=2)
    #: drop prompts whose responses are all the same: nothing to compare
    distinct: bool = True
