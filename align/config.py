"""Typed settings of every stage: a YAML recipe, then ``key=value`` on the command line.

An unknown key is an error that names the nearest known one. Defaults are the thesis's where it
gives them (chapter 9 and appendix H); recipes under ``apps/recipes`` set the rest.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from align.recipe import ConfigError as ConfigError
from align.recipe import load_recipe as load_recipe
from align.recipe import resolve as resolve
from align.template import check_template

#: the small pretrained base of the built-in world, as shipped
WORLD_BASE = Path(__file__).parent / "models" / "world_base"

FactKind: TypeAlias = Literal["captions", "rationales", "answer", "objects", "knowledge"]


def is_hub_id(name: str) -> bool:
    """Whether the name of a model or an adapter is a Hub id, ``owner/name``, rather than a local path.

    A name whose first folder is here is a path: with ``runs`` there, ``runs/adaptor`` is a slip, not
    somebody's repository.
    """
    looks_it = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None
    return looks_it and not Path(name.split("/")[0]).exists()


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)


class LoraSettings(Settings):
    """Low-rank adapters on the language model's attention and feed-forward projections."""

    r: int = Field(64, ge=1)
    alpha: int = Field(16, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    #: leaf names of the linear layers; they are matched inside the language model only
    targets: list[str] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class ModelSettings(Settings):
    #: a directory or a Hub id (owner/name) of an image-text-to-text checkpoint; "world-base" is shipped here
    path: str
    #: PEFT adapters to merge into the base at load time, in order: [SFT adapter, policy]
    adapter: str | list[str] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    #: weight bits of the frozen base: 8 or 4 (bitsandbytes NF4); None keeps ``dtype``. With an adapter the
    #: whole model is first merged in ``dtype`` in the computer's memory
    bits: Literal[4, 8] | None = None
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    trust_remote_code: bool = False
    device: str = "auto"

    @property
    def adapters(self) -> list[str]:
        """The adapters to merge, in order."""
        return [self.adapter] if isinstance(self.adapter, str) else list(self.adapter or [])

    @property
    def name(self) -> str:
        """What tells the model apart: the last adapter, else the checkpoint."""
        return (self.adapters or [self.path])[-1]

    @field_validator("path")
    @classmethod
    def _shipped(cls, path: str) -> str:
        return str(WORLD_BASE) if path == "world-base" else path


class DataSettings(Settings):
    #: one file or several (concatenated), of the project's schema or of a foreign format
    path: str | list[str]
    #: name of a foreign format (``align data formats``); None reads the project's own JSONL
    format: str | None = None
    #: the format's own options, such as the further files that it reads (``align data formats``)
    options: dict[str, str] = {}
    #: the image root; paths in the records are relative to it and never leave it
    images: str | None = None
    #: captions by image, added as facts: LLaVA-RLHF's image_to_caption.json, or COCO's captions file
    captions: str | None = None
    limit: int | None = Field(None, ge=1)
    #: share of bad records tolerated before the stage stops
    max_bad: float = Field(0.01, ge=0, le=1)
    #: stop at the first bad record
    strict: bool = False


class OptimSettings(Settings):
    lr: float = Field(2e-5, gt=0)
    #: learning rates of single parts, e.g. {"projector": 1e-3}; a missing part uses ``lr``
    part_lr: dict[Literal["vision", "projector", "language"], float] = {}
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)


class RunSettings(Settings):
    """What every stage has in common."""

    #: the run directory
    output: str
    seed: int = 0
    resume: bool = False
    dry_run: bool = False
    #: torch threads; 0 leaves torch's own choice
    threads: int = Field(0, ge=0)
    log_every: int = Field(10, ge=1)
    #: steps between checkpoints that --resume can start from; 0 saves at the end only
    save_every: int = Field(50, ge=0)
    report_to: list[Literal["tensorboard"]] = ["tensorboard"]


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
    optim: OptimSettings = OptimSettings()
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


class GenerateSettings(Settings):
    max_new_tokens: int = Field(896, ge=1)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    batch_size: int = Field(64, ge=1)


class SampleSettings(RunSettings):
    """Responses of a model to prompts: what annotators compare (thesis: two, at temperature 0.7)."""

    model: ModelSettings
    data: DataSettings
    generate: GenerateSettings = GenerateSettings(max_new_tokens=128, temperature=0.7)
    responses: int = Field(2, ge=2)
    #: drop prompts whose responses are all the same: nothing to compare
    distinct: bool = True


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


class PpoSettings(RunSettings):
    model: ModelSettings
    #: run directory (or its ``reward`` folder) of a reward model
    reward_model: str
    #: image root of the pictures that the reward model sees; None = those of ``data``
    reward_images: str | None = None
    data: DataSettings
    optim: OptimSettings = OptimSettings(lr=3e-5, warmup_steps=5)
    #: learning rate of the value adapter and head; None = ``optim.lr``
    value_lr: float | None = Field(None, gt=0)
    lora: LoraSettings = LoraSettings()
    generate: GenerateSettings = GenerateSettings()
    symbolic: SymbolicSettings = SymbolicSettings()
    steps: int = Field(500, ge=1)
    rollouts: int = Field(512, ge=2)
    #: passes over each batch of rollouts, and rollouts per gradient step
    epochs: int = Field(2, ge=1)
    minibatch: int = Field(256, ge=1)
    #: rollouts per forward pass inside a gradient step (accumulated exactly); None = minibatch
    micro_batch: int | None = Field(None, ge=1)
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


class EndpointSettings(Settings):
    """An OpenAI-compatible chat endpoint."""

    #: the API's root, e.g. http://localhost:8000/v1
    url: str
    #: the name that the server knows
    model: str
    #: environment variable that holds the key
    key_env: str = "OPENAI_API_KEY"
    timeout: float = Field(120.0, gt=0)
    retries: int = Field(5, ge=0)
    #: requests started a minute, at most
    per_minute: float | None = Field(None, gt=0)
    workers: int = Field(4, ge=1)
    #: cost of a million tokens read and written, for the estimate that is shown first
    price_input: float = Field(0.0, ge=0)
    price_output: float = Field(0.0, ge=0)


class JudgeSettings(Settings):
    """Who rates answers (MMHal-Bench, LLaVA-Bench): an endpoint, or a language model on this machine."""

    endpoint: EndpointSettings | None = None
    #: a checkpoint of a language model, with images or without; it reads text only
    local: ModelSettings | None = None
    max_tokens: int = Field(1024, ge=1)
    temperature: float = Field(0.0, ge=0)
    #: prompts that a local judge reads at once
    batch_size: int = Field(8, ge=1)
    #: how often the judge is asked the same
    repeats: int = Field(1, ge=1)
    #: where its verdicts are kept by content; default: verdict_cache.jsonl in the output
    cache: str | None = None

    @model_validator(mode="after")
    def _one(self) -> JudgeSettings:
        if self.local is not None and self.repeats > 1 and self.temperature == 0:
            raise ValueError("at temperature 0 a local judge repeats itself; raise it, or leave repeats at 1")
        if (self.endpoint is None) == (self.local is None):
            raise ValueError(
                "name one judge: judge.endpoint.url with judge.endpoint.model, or judge.local.path"
            )
        return self


class ChairSettings(Settings):
    """What CHAIR needs beside ``benchmarks.chair``."""

    #: captions_val2014.json; the official truth counts what captions name too
    captions: str | None = None
    #: the official synonyms.txt; default: our own list
    synonyms: str | None = None
    #: image ids to describe, one a line; default: all of the annotations (of a file of answers: its own)
    images: str | None = None


class BenchmarkSettings(RunSettings):
    """Which benchmarks, and what they are judged by; for a model's run and for files of answers."""

    #: benchmark -> its file; amber and llava_bench: the folder of their files
    benchmarks: dict[
        Literal[
            "pope_random", "pope_popular", "pope_adversarial", "mmhal", "describe",
            "chair", "amber", "llava_bench", "mmbench",
        ],
        str,
    ]  # fmt: skip
    #: the image root; MMHal's web addresses are looked up in it by their last part
    images: str | None = None
    #: folder of POPE's pictures inside ``images``
    pope_prefix: str = ""
    #: a folder of the built-in world: its scenes are the judge of mmhal and the truth of describe
    world: str | None = None
    #: recorded verdicts of a judge (JSONL)
    verdicts: str | None = None
    judge: JudgeSettings | None = None
    #: a file with MMHal's judge prompt in place of our own wording
    judge_prompt: str | None = None
    chair: ChairSettings = ChairSettings()
    #: finder of AMBER's nouns: auto (spaCy's en_core_web_lg if installed), words, or a spaCy model's name
    amber_nouns: str = "auto"
    limit: int | None = Field(None, ge=1)
    bootstrap: int = Field(1000, ge=100)


class EvalSettings(BenchmarkSettings):
    #: who answers: a checkpoint here or on the Hub, or a model behind an endpoint that takes images
    model: ModelSettings | None = None
    endpoint: EndpointSettings | None = None
    #: further temperatures at which the describe prompts are answered, beside generate.temperature
    describe_temperatures: list[float] = []
    #: how yes/no questions are answered: generated, or the likelier of the two as the first token
    yes_no: Literal["generate", "next_token"] = "generate"
    generate: GenerateSettings = GenerateSettings(max_new_tokens=128, temperature=0.0)

    @model_validator(mode="after")
    def _one(self) -> EvalSettings:
        if (self.model is None) == (self.endpoint is None):
            raise ValueError(
                "name one model: model.path, or endpoint.url with endpoint.model "
                "(model=null leaves a recipe's model out)"
            )
        if self.endpoint is not None and self.yes_no != "generate":
            raise ValueError("an endpoint shows no probabilities; leave yes_no at generate")
        return self


class ScoreSettings(BenchmarkSettings):
    #: a file of answers to all the benchmarks, or benchmark -> file
    answers: str | dict[str, str]
    #: whose answers they are, for the tables
    name: str = "answers"
