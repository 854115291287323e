"""Rewards that the user writes: functions named in a recipe as ``module:function``, each with its weight."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
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

    A recipe thereby runs the modules that it names: use none that you would not run.

    Raises:
        RewardPartError: names the reward, what is not there, and the mend.
    """
    found = {name: _find(name, reward.function) for name, reward in settings.items()}
    for name, function in found.items():
        _check_arguments(name, function, settings[name].options)
    return found


def sources(settings: Mapping[str, UserReward]) -> dict[str, Path]:
    """The files of the functions' modules by module, of those that have been imported."""
    found = {}
    for module in sorted({reward.function.partition(":")[0] for reward in settings.values()}):
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is not None:
            found[module] = Path(file)
    return found


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
    except Exception as error:  # somebody's own code may raise anything
        raise RewardPartError(
            f"user_rewards.{name}.function {where!r}: {module} does not load ({type(error).__name__}: "
            f"{error}); mend it"
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


def _check_arguments(name: str, function: RewardFunction, options: Mapping[str, Any]) -> None:
    """Before any model loads: a wrong argument would show when the first responses are there."""
    try:
        inspect.signature(function).bind([], [], **options)
    except TypeError as error:
        raise RewardPartError(
            f"user_rewards.{name}: cannot be called with (prompts, responses) and the options "
            f"{sorted(options)} ({error}); change its arguments or user_rewards.{name}.options"
        ) from error


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
        said = function(list(prompts), list(texts), **settings[name].options)
        values = list(said) if isinstance(said, Iterable) else []
        if len(values) != len(texts):
            raise RewardPartError(
                f"user_rewards.{name}: {len(values)} values for {len(texts)} responses (it returned a "
                f"{type(said).__name__}); return one for each"
            )
        for prompt, value in zip(prompts, values):
            if not _is_finite(value):
                raise RewardPartError(
                    f"user_rewards.{name}: {value!r} for prompt {prompt.id!r}; return a finite number"
                )
        parts[name] = settings[name].weight * torch.tensor([float(v) for v in values], dtype=torch.float32)
    return parts


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
