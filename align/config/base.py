"""What the settings of several stages share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

#: the small pretrained base of the built-in world, as shipped
WORLD_BASE = Path(__file__).parents[1] / "models" / "world_base"

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


def _one_rate(optim: OptimSettings) -> OptimSettings:
    if optim.part_lr:
        raise ValueError(
            f"part_lr {dict(optim.part_lr)} is read by SFT alone, and here an adapter of the language model "
            "learns; leave it out, and set lr"
        )
    return optim


def _every_step(log_every: int) -> int:
    if log_every not in (1, RunSettings.model_fields["log_every"].default):
        raise ValueError(f"{log_every} is not read: every step is logged; set it to 1, or leave it out")
    return log_every


#: of a stage whose adapter alone learns
AdapterOptim: TypeAlias = Annotated[OptimSettings, AfterValidator(_one_rate)]
#: ``log_every`` of a stage whose steps are minutes long
EveryStep: TypeAlias = Annotated[int, AfterValidator(_every_step)]


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
    #: beside metrics.jsonl; wandb (when installed) reads its key, project and mode from WANDB_* variables
    report_to: list[Literal["tensorboard", "wandb"]] = ["tensorboard"]


class GenerateSettings(Settings):
    max_new_tokens: int = Field(896, ge=1)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    batch_size: int = Field(64, ge=1)
