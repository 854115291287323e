"""Readable ends for PPO runs that went wrong, before they spoil weights."""

from __future__ import annotations

import math

from torch import Tensor

#: largest difference of log-probabilities of a fresh policy and its reference that rounding explains
FRESH = 1e-3


class PpoError(ValueError):
    """A run that cannot start or go on; the text says what was seen and what to change."""


def check_fresh(logprobs: Tensor, reference: Tensor) -> None:
    """Before any update the policy is its reference. Raises PpoError with a diagnosis if it is not."""
    worst = float((logprobs - reference).abs().max())
    if not worst <= FRESH:
        raise PpoError(
            f"before the first update policy and reference differ by {worst:.2g} in a log-probability "
            f"(at most {FRESH} is rounding), so the KL would not start at 0. Both read the same tokens by "
            "the same template; so the adapter is not the identity at its start, or the model does not give "
            "the same twice: check model.bits (try 8 or none), model.attention (try eager), model.dtype "
            "(float16 overflows: try bfloat16), and that the base has no dropout that stays on in evaluation"
        )


def check_finite(step: int, metrics: dict[str, float], policy_lr: float, value_lr: float) -> None:
    """Raise PpoError, before the weights are touched, naming what is NaN or infinite and what to lower."""
    broken = [name for name, value in metrics.items() if not math.isfinite(value)]
    if broken:
        raise PpoError(
            f"step {step + 1}: {', '.join(broken)} not finite, so this update was not applied. Lower "
            f"optim.lr (now {policy_lr}), value_lr (now {value_lr}) or reward_scale, or use bfloat16 "
            "or float32 instead of float16; the last checkpoint is intact"
        )
