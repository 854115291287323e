"""Where metrics are shown beside ``metrics.jsonl``: TensorBoard, and Weights & Biases when asked for.

W&B takes its account, project and mode from its own environment (``WANDB_API_KEY`` or ``wandb login``,
``WANDB_PROJECT``, ``WANDB_ENTITY``, ``WANDB_MODE=offline``); nothing secret is written here. ``wandb.json``
in the run directory holds the run's id, so that a resumed run goes on as the same one.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.jsonl import read_json, write_json

#: W&B's project where ``WANDB_PROJECT`` names none
PROJECT = "align-lmm"


class TrackingError(RuntimeError):
    """Metrics cannot be reported as asked; the text says why and how to mend it."""


def check_reports(report_to: Sequence[str]) -> None:
    """Raise TrackingError when W&B is asked for and is not installed."""
    if "wandb" in report_to:
        _wandb()


def _wandb() -> Any:
    try:
        import wandb  # optional, and a second to load
    except ImportError as error:
        raise TrackingError(
            f"report_to: wandb is not usable ({error}); pip install wandb, or leave it out of report_to"
        ) from None
    return wandb


class Trackers:
    """What a run directory reports to. Files and runs open when they are first needed."""

    def __init__(self, path: Path, report_to: Sequence[str]) -> None:
        self._path, self._report_to = path, report_to
        self._purge_step: int | None = None
        self._board: Any = None
        self._run: Any = None

    def start(self, stage: str, settings: Mapping[str, Any]) -> None:
        """Begin, or go on with, the W&B run of this directory; TensorBoard needs no start.

        Raises:
            TrackingError: W&B is not installed, or does not begin (no key, no network).
        """
        if "wandb" not in self._report_to:
            return
        wandb, file = _wandb(), self._path / "wandb.json"
        if not file.exists():
            names = {key: os.environ.get(f"WANDB_{key.upper()}") or None for key in ("project", "entity")}
            names["project"] = names["project"] or PROJECT
            write_json(file, {"id": secrets.token_hex(4)} | names)
        known = {key: read_json(file)[key] for key in ("id", "project", "entity")}
        named = {"name": "/".join(self._path.parts[-2:]), "job_type": stage, "config": dict(settings)}
        try:
            self._run = wandb.init(**known, **named, dir=str(self._path), resume="allow")
        except wandb.Error as error:
            raise TrackingError(
                f"report_to: W&B did not begin ({' '.join(str(error).split())}); log in with `wandb login`, "
                "set WANDB_MODE=offline, or leave wandb out of report_to"
            ) from None

    def log(self, step: int, values: Mapping[str, float | int | bool | str]) -> None:
        """Report the numbers among ``values``; text stays in ``metrics.jsonl``.

        W&B never goes back: after a resume it has the steps behind the checkpoint already, and as their
        values are the same it is not told them again.
        """
        numbers = {name: value for name, value in values.items() if not isinstance(value, str)}
        if "tensorboard" in self._report_to:
            for name, value in numbers.items():
                self._tensorboard().add_scalar(name, value, step)
        if self._run is not None and numbers and step >= self._run.step:
            self._run.log(numbers, step=step)

    def rewind(self, step: int) -> None:
        """TensorBoard forgets what was reported after ``step``."""
        self._close_board()
        self._purge_step = step + 1

    def close(self, *, failed: bool = False) -> None:
        """Flush and end; W&B shows whether the run failed."""
        self._close_board()
        if self._run is not None:
            self._run.finish(exit_code=int(failed))
            self._run = None

    def _close_board(self) -> None:
        if self._board is not None:
            self._board.close()
            self._board = None

    def _tensorboard(self) -> Any:
        if self._board is None:
            # Here and not above: TensorBoard takes a second to import, and tests do without.
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self._path / "tensorboard"), purge_step=self._purge_step)
        return self._board
