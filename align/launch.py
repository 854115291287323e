"""How a stage was started: in one process, or by a launcher (torchrun, accelerate launch) in several."""

from __future__ import annotations

import os


class LaunchError(RuntimeError):
    """A stage started in a way that it cannot work in; the text says how to start it."""


def one_process(stage: str) -> None:
    """Raise LaunchError where a launcher started several processes: all would write one run directory."""
    count = int(os.environ.get("WORLD_SIZE") or 1)
    if count > 1:
        raise LaunchError(
            f"{stage} runs in one process, and WORLD_SIZE is {count}; start it without torchrun "
            "(CUDA_VISIBLE_DEVICES chooses its GPU)"
        )
