"""Rewards that the user writes: functions named in a recipe as ``module:function``, each with its weight."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from align.config import UserReward
from align.rewards import RewardPartError
from data.schema import Prompt

#: (prompts, responses, **options) -> one number for each response, higher is better
RewardFunction: TypeAlias = Callable[..., Sequence[float]]


def find_functions(settings: Mapping[str, UserReward]) -> dict[str, RewardFunction]:
    """Import the functions by their rewards' names; modules of the current directory are found too.

    Raises:
        RewardPartError: names the reward, what is not there, and the mend.
    """
    return {name: _find(name, reward.function) for name, reward in settings.items()}


def _find(name: str, where: str) -> RewardFunction:
    module, _, attribute = where.partition(":")
    here = str(Path.cwd())
    # a console script's path begins with its own folder, not with the present one
    if here not in sys.path:
        sys.path.append(here)
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise RewardPartError(
            f"user_rewards.{name}.function {where!r}: {error}; start where the module lies, or put its "
            "folder on PYTHONPATH"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise RewardPartError(
                f"user_rewards.{name}.function {where!r}: {module} has no {attribute!r}; check the name"
            )
        found = getattr(found, part)
    if not callable(found):
        raise RewardPartError(f"user_rewards.{name}.function {where!r}: is no function; name one")
    return found


def user_parts(
    functions: Mapping[str, RewardFunction],
    settings: Mapping[str, UserReward],
    prompts: Sequence[Prompt],
    texts: Sequence[str],
) -> dict[str, Tensor]:
    """weight × what each function says of B responses, by name, each (B,) float32.

    Raises:
        RewardPartError: a function returned another number of values, or one that is no finite number; names
            it and the prompt's id.
    """
    parts = {}
    for name, function in functions.items():
        said = list(function(list(prompts), list(texts), **settings[name].options))
        if len(said) != len(texts):
            raise RewardPartError(
                f"user_rewards.{name}: {len(said)} values for {len(texts)} responses; return one for each"
            )
        for prompt, value in zip(prompts, said):
            if not _is_finite(value):
                raise RewardPartError(
                    f"user_rewards.{name}: {value!r} for prompt {prompt.id!r}; return a finite number"
                )
        parts[name] = settings[name].weight * torch.tensor([float(v) for v in said], dtype=torch.float32)
    return parts


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
