"""Which samples and which learning rate a step uses: pure functions of (seed, step), so that a resumed run
continues exactly where it stood without any generator's state."""

from __future__ import annotations

import hashlib
import math
import random
from typing import Literal


def step_seed(*parts: int | str) -> int:
    """A 63-bit seed that is equal for equal parts, on any machine and in any process."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def permutation(n: int, *seed: int | str) -> list[int]:
    """A random order of 0 .. n-1 that depends on ``seed`` only."""
    order = list(range(n))
    random.Random(step_seed(*seed)).shuffle(order)
    return order


def stream(n: int, seed: int, start: int, stop: int) -> list[int]:
    """Positions ``start .. stop`` of an endless pass over n samples, each epoch in its own order.

    Epoch e is the permutation from (seed, e), so no sample comes twice before all came once.

    Raises:
        ValueError: ``n`` is not positive.
    """
    if n < 1:
        raise ValueError(f"cannot draw from {n} samples; give at least one")
    picked: list[int] = []
    for epoch in range(start // n, (max(stop, start + 1) - 1) // n + 1):
        first, last = max(start - epoch * n, 0), min(stop - epoch * n, n)
        picked += permutation(n, seed, "epoch", epoch)[first:last]
    return picked


def lr_factor(
    step: int, total: int, warmup: int, schedule: Literal["cosine", "linear", "constant"] = "cosine"
) -> float:
    """What the learning rate is multiplied by at 0-based ``step`` of ``total``.

    It rises as 1/warmup, 2/warmup .. 1 over the ``warmup`` first steps (none is wasted at zero), then falls
    to 0 after the last step along half a cosine or a line, or stays.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1 - done
