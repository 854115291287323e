"""Readable ends for PPO runs that went wrong, before they spoil weights."""

from __future__ import annotations

import logging
import math

from torch import Tensor

from align.config import ModelSettings

log = logging.getLogger(__name__)

#: largest difference of log-probabilities of a fresh policy and its reference that rounding explains
FRESH = 1e-3
#: largest mean difference of a token's log-probability as drawn and as scored that rounding explains. Numbers
#: from 16 to 32, as logits are, lie 1/8 apart in bfloat16 and 1/64 in float16, and two ways of computing one
#: often round to neighbours; in float32 they lie 2e-6 apart, and long sums in another order differ by more
AS_DRAWN = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}


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


def check_drawn(gap: float, first: float, model: ModelSettings) -> None:
    """The policy that samples is the one that is scored, in the first rollouts.

    ``gap`` is the mean difference of a token's log-probability as drawn and as scored, ``first`` the same of
    the responses' first tokens alone. Raises PpoError with a diagnosis where the base is in float32. With
    less precision it is a warning, as rounding grows with the model; and with 8 bits, what is kept in 16
    depends on the whole batch.
    """
    limit = AS_DRAWN["bfloat16" if model.bits == 8 else model.dtype]
    if gap <= limit:
        return
    kind = f"{model.dtype}, {model.bits} bits" if model.bits else model.dtype
    if first <= limit:
        where = (
            f"First tokens agree ({first:.2g}), later ones do not: so it is the keys and values that are "
            "kept from token to token, as of attention to a window alone: try model.attention eager"
        )
    else:
        where = (
            f"First tokens differ already ({first:.2g}), ahead of any use of what is kept: so it is how the "
            "prompt is read. Sampling pads it on the left, scoring pads the row on the right: try "
            "generate.batch_size 1, then model.attention eager; or the processor gives other inputs the "
            "second time, as a chat template with the date in it does"
        )
    text = (
        "before the first update a token's log-probability as it was drawn and as it is scored differ by "
        f"{gap:.2g} in the mean (at most {limit} is rounding in {kind}), so the policy that learns is not "
        f"the one that samples. {where}"
    )
    if model.dtype == "float32" and not model.bits:
        raise PpoError(text)
    log.warning("%s. Where none of it helps, model.dtype float32 tells whether it is rounding", text)


def check_finite(step: int, metrics: dict[str, float], policy_lr: float, value_lr: float) -> None:
    """Raise PpoError, before the weights are touched, naming what is NaN or infinite and what to lower."""
    broken = [name for name, value in metrics.items() if not math.isfinite(value)]
    if broken:
        raise PpoError(
            f"step {step + 1}: {', '.join(broken)} not finite, so this update was not applied. Lower "
            f"optim.lr (now {policy_lr}), value_lr (now {value_lr}) or reward_scale, or use bfloat16 "
            "or float32 instead of float16; the last checkpoint is intact"
        )
