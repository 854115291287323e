"""Which settings a stage has in a round: where it writes, what it reads, and on which model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from align.config import (
    EvalSettings,
    ModelSettings,
    PpoSettings,
    RewardSettings,
    RoundsSettings,
    RunSettings,
    SampleSettings,
    Settings,
)
from apps.rounds.labels import LABELS

S = TypeVar("S", bound=RunSettings)


def folder_of(settings: RoundsSettings, number: int) -> Path:
    """Where round ``number`` lies; 0 is what stands before the first."""
    return Path(settings.output) / (f"round-{number}" if number else "start")


def policy_after(settings: RoundsSettings, number: int) -> ModelSettings:
    """The policy that round ``number`` ends with: the model, and the policies to merge into it, in order."""
    first = 1 if settings.start == "previous" else max(number, 1)
    made = [str(folder_of(settings, n) / "ppo/policy") for n in range(first, number + 1)]
    return settings.model.model_copy(update={"adapter": [*settings.model.adapters, *made] or None})


def start_of(settings: RoundsSettings, number: int) -> ModelSettings:
    """The model that PPO starts from in round ``number``, and its reference."""
    return policy_after(settings, number - 1) if settings.start == "previous" else settings.model


def sample_settings(settings: RoundsSettings, number: int) -> SampleSettings:
    """Responses of the present policy to the round's prompts."""
    data = _prompts(settings, number, "prompts")
    shared = _shared(settings, number, "sample")
    return _filled(
        SampleSettings, settings.sample, shared, model=policy_after(settings, number - 1), data=data
    )


def reward_settings(settings: RoundsSettings, number: int) -> RewardSettings:
    """A reward model on the labels of this round, or of all so far."""
    numbers = range(1, number + 1) if settings.pairs == "all" else [number]
    labels = [str(folder_of(settings, n) / "labels" / LABELS) for n in numbers]
    data = {"path": labels, "images": settings.prompts.images}
    base = settings.reward_base or start_of(settings, number)
    return _filled(
        RewardSettings, settings.reward, _shared(settings, number, "reward"), model=base, data=data
    )


def ppo_settings(settings: RoundsSettings, number: int) -> PpoSettings:
    """PPO against the round's reward model."""
    data = _prompts(settings, number, "prompts" if settings.ppo_prompts is None else "ppo_prompts")
    judge = str(folder_of(settings, number) / "reward")
    shared = _shared(settings, number, "ppo") | {"reward_model": judge}
    return _filled(PpoSettings, settings.ppo, shared, model=start_of(settings, number), data=data)


def eval_settings(settings: RoundsSettings, number: int) -> EvalSettings:
    """The evaluation of the policy that round ``number`` ends with; all are asked alike, by one seed."""
    assert settings.eval is not None
    shared = _shared(settings, number, "eval") | {"seed": settings.seed}
    return _filled(EvalSettings, settings.eval, shared, model=policy_after(settings, number))


def _shared(settings: RoundsSettings, number: int, stage: str) -> dict[str, Any]:
    return {
        "output": str(folder_of(settings, number) / stage),
        "seed": settings.seed + number,
        "threads": settings.threads,
        "report_to": settings.report_to,
        "resume": True,
    }


def _prompts(settings: RoundsSettings, number: int, name: str) -> dict[str, Any]:
    """The round's own prompts as a stage reads them."""
    images = getattr(settings, name).images
    return {"path": str(folder_of(settings, number) / f"{name}.jsonl"), "images": images}


def _filled(
    kind: type[S], section: Settings, shared: Mapping[str, Any], *, model: ModelSettings, **more: Any
) -> S:
    return kind.model_validate(section.model_dump() | dict(shared) | {"model": model.model_dump()} | more)
