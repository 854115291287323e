"""A run directory: what a stage was told, what it measured, and where it can go on from.

    settings.yaml     the resolved settings; a directory belongs to one set of them
    meta.json         stage, and for every start the git commit and the package versions
    rejects.jsonl     the bad records that were left out, and why
    metrics.jsonl     one line for each logged step
    tensorboard/      the same for TensorBoard, when asked for; wandb/ and wandb.json likewise
    checkpoints/      step-00000050-000/ … : whole or absent, never half written
    DONE              present once the stage has finished
    .lock             held by the process that writes here

Nothing here is pickled code: tensors are safetensors, optimizer state is read with ``weights_only``.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

import numpy as np
import torch
import yaml
from pydantic import ValidationError
from tqdm import tqdm

from align.config import RunSettings
from align.state import CheckpointError as CheckpointError
from align.state import load_state as load_state
from align.state import load_tensors as load_tensors
from align.state import save_state as save_state
from align.state import save_tensors as save_tensors
from align.state import sync
from align.tracking import Trackers, check_reports
from data.jsonl import read_json, write_json, write_text
from data.processes import sole_writer

T = TypeVar("T")

#: settings that say where and how a run is carried out, not what it computes. ``log_every`` is none of them:
#: it decides what metrics.jsonl holds; nor is ``save_every``: SFT logs whenever it saves
FREE_KEYS = (
    {"output", "resume", "dry_run", "threads", "report_to", "workers", "model.device"}
    | {
        f"{section}.{key}"
        for section in ("endpoint", "judge.endpoint")
        for key in ("key_env", "timeout", "retries", "per_minute", "workers", "price_input", "price_output")
    }
    | {"launch", "labels.file", "labels.format", "labels.share"}
)
_PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "open_clip_torch", "bitsandbytes", "numpy")
_CHECKPOINT = re.compile(r"step-(\d{8,})-(\d{3,})")
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class RunDir:
    """One run's directory. Make it with :meth:`create`, and use it as a context manager: it is held against
    other writers until :meth:`close`. Made directly, it neither checks nor holds: for the further processes
    of a run whose main process holds it."""

    def __init__(self, path: Path, settings: RunSettings) -> None:
        self.path = path
        self._trackers = Trackers(path, settings.report_to)
        self._metrics_file: Any = None
        self._held = contextlib.ExitStack()

    @classmethod
    def create(cls, output: str | Path, settings: RunSettings, stage: str) -> RunDir:
        """Open ``output`` for a run of ``stage``: a new or empty directory, or with
        ``settings.resume`` one that the same stage left with the same settings.

        With ``resume`` and nothing there yet the run simply starts, so that one command both starts
        and continues. :data:`FREE_KEYS` may differ between the two.

        Raises:
            CheckpointError: the directory is not empty and ``resume`` is off, is no run directory,
                belongs to another stage or other settings (the differing keys are named), or is being
                written by another process.
            TrackingError: W&B is to be reported to, and is not there or does not begin.
        """
        check_reports(settings.report_to)
        # once before anything is put there, and again for what its last writer may have left meanwhile
        cls.check(output, settings, stage)
        path = Path(output)
        path.mkdir(parents=True, exist_ok=True)
        run = cls(path, settings)
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(sole_writer(path))
            except BlockingIOError:
                raise CheckpointError(
                    f"{path}: another process is writing this run; wait until it has ended (or end it), "
                    "or choose another output"
                ) from None
            run._check_belongs(settings, stage)
            run._record_start(settings, stage)
            if not run.is_done:
                run._trackers.start(stage, settings.model_dump(mode="json"))
            run._held = held.pop_all()
        return run

    @classmethod
    def check(cls, output: str | Path, settings: RunSettings, stage: str) -> bool:
        """Raise CheckpointError where :meth:`create` would (but for other writers); whether the run is done.

        Writes nothing, so that a stage can ask before it spends minutes on its data and model.
        """
        path = Path(output)
        if path.exists():
            if not path.is_dir():
                raise CheckpointError(f"{path}: is a file; give a directory as the output")
            cls(path, settings)._check_belongs(settings, stage)
        return (path / "DONE").exists()

    def _record_start(self, settings: RunSettings, stage: str) -> None:
        meta_path = self.path / "meta.json"
        starts = read_json(meta_path)["starts"] if meta_path.exists() else []
        write_json(meta_path, {"stage": stage, "starts": [*starts, _environment()]})
        text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_text(self.path / "settings.yaml", text)

    def _check_belongs(self, settings: RunSettings, stage: str) -> None:
        if all(entry.name.startswith(".") for entry in self.path.iterdir()):
            return
        recorded = self.path / "settings.yaml"
        if not recorded.exists() or not (self.path / "meta.json").exists():
            # A kill between the two first files leaves meta.json alone; that is still an empty run.
            if {entry.name for entry in self.path.iterdir() if entry.name[0] != "."} == {"meta.json"}:
                return
            raise CheckpointError(
                f"{self.path}: not empty and not a run directory; choose another output or empty it"
            )
        theirs = read_json(self.path / "meta.json")["stage"]
        if theirs != stage:
            raise CheckpointError(
                f"{self.path}: holds a run of {theirs!r}, not {stage!r}; choose another output"
            )
        different = _different_keys(recorded, settings)
        if different:
            raise CheckpointError(
                f"{self.path}: belongs to other settings ({'; '.join(different)}); "
                "choose another output, or give the settings it was started with"
            )
        if not settings.resume:
            raise CheckpointError(
                f"{self.path}: holds an earlier run with these settings; "
                "add --resume to continue it, or choose another output"
            )

    def __enter__(self) -> RunDir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._trackers.close(failed=kind is not None)
        self.close()

    # --- metrics ---

    def log(self, step: int, **metrics: Any) -> None:
        """Append one line to ``metrics.jsonl`` (flushed at once), and tell it to TensorBoard and W&B.

        Values are numbers, 0-dim tensors, booleans or text; names may hold slashes
        (``**{"objective/kl": kl}``). NaN and infinities are kept.
        """
        values = {name: _plain(value) for name, value in metrics.items()}
        if self._metrics_file is None:
            self._drop_torn_line()
            self._metrics_file = (self.path / "metrics.jsonl").open("a", encoding="utf-8")
        line = {"step": int(step)} | {name: _to_json(value) for name, value in values.items()}
        self._metrics_file.write(json.dumps(line, allow_nan=False) + "\n")
        self._metrics_file.flush()
        self._trackers.log(int(step), values)

    def metrics(self) -> list[dict[str, Any]]:
        """All logged lines, oldest first; a last line torn by a kill is left out.

        Raises:
            CheckpointError: a line that is not JSON (with its number).
        """
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")
        found = []
        for number, line in enumerate(lines[:-1], 1):
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                raise CheckpointError(f"{path}:{number}: not JSON ({error.msg}); remove the line") from None
            found.append(
                {name: _NON_FINITE.get(v, v) if isinstance(v, str) else v for name, v in entry.items()}
            )
        return found

    def truncate_metrics(self, step: int) -> None:
        """Forget the lines after ``step``: a run that goes on from there writes them again."""
        kept = [entry for entry in self.metrics() if entry["step"] <= step]
        self._close_metrics()
        self._trackers.rewind(step)
        rows = [{name: _to_json(value) for name, value in entry.items()} for entry in kept]
        write_text(
            self.path / "metrics.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        )

    def _drop_torn_line(self) -> None:
        path = self.path / "metrics.jsonl"
        if path.exists():
            text = path.read_bytes()
            os.truncate(path, text.rfind(b"\n") + 1)

    def close(self) -> None:
        """Flush and close the open files, and let other writers in."""
        self._close_metrics()
        self._trackers.close()
        self._held.close()

    def _close_metrics(self) -> None:
        if self._metrics_file is not None:
            self._metrics_file.close()
            self._metrics_file = None

    # --- checkpoints ---

    def save_checkpoint(self, step: int, write: Callable[[Path], None], keep: int = 1) -> Path:
        """Save what ``write(directory)`` writes as the checkpoint of ``step``, all of it or nothing.

        It is written to a hidden directory, flushed to disk and renamed; only then are older ones
        removed, all but the ``keep`` newest. A crash at any moment leaves the previous one usable.
        """
        if keep < 1:
            raise ValueError(f"keep is {keep}; at least the checkpoint just written is kept (1)")
        root = self.path / "checkpoints"
        root.mkdir(exist_ok=True)
        for stale in root.glob(".writing-*"):
            shutil.rmtree(stale)
        temporary = root / f".writing-{os.getpid()}"
        temporary.mkdir()
        try:
            write(temporary)
            _sync_tree(temporary)
            # A second save of one step gets the next serial: replacing a directory is not atomic.
            serial = max((s for n, s, _ in self._checkpoints() if n == step), default=-1) + 1
            final = root / f"step-{step:08d}-{serial:03d}"
            temporary.rename(final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync(root)
        for _, _, old in self._checkpoints()[:-keep]:
            shutil.rmtree(old)
        return final

    def latest_checkpoint(self) -> Path | None:
        """The newest whole checkpoint, or None. :func:`checkpoint_step` tells its step."""
        found = self._checkpoints()
        return found[-1][2] if found else None

    def _checkpoints(self) -> list[tuple[int, int, Path]]:
        root = self.path / "checkpoints"
        if not root.is_dir():
            return []
        matches = [(_CHECKPOINT.fullmatch(entry.name), entry) for entry in root.iterdir()]
        return sorted((int(match[1]), int(match[2]), entry) for match, entry in matches if match)

    # --- the end ---

    def done(self) -> None:
        """Mark the run as finished, and :meth:`close` it."""
        self._close_metrics()
        self._trackers.close()
        write_text(self.path / "DONE", "")
        self.close()

    @property
    def is_done(self) -> bool:
        return (self.path / "DONE").exists()


def checkpoint_step(path: Path) -> int:
    """The step of a checkpoint directory.

    Raises:
        CheckpointError: the name is not that of a checkpoint.
    """
    match = _CHECKPOINT.fullmatch(path.name)
    if match is None:
        raise CheckpointError(f"{path}: not a checkpoint directory (step-XXXXXXXX-XXX)")
    return int(match[1])


def progress(items: Iterable[T] | int, desc: str) -> tqdm[T]:
    """A bar over ``items`` (or over ``range(items)``; also ``.update()``) on a terminal, silent elsewhere."""
    source = cast(Iterable[T], range(items)) if isinstance(items, int) else items
    return tqdm(source, desc=desc, disable=not sys.stderr.isatty(), dynamic_ncols=True)


def _different_keys(recorded: Path, settings: RunSettings) -> list[str]:
    """``key: recorded → given`` for each setting that differs; new settings count with their defaults."""
    try:
        theirs = type(settings).model_validate(yaml.safe_load(recorded.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{recorded}: not settings of this version ({reason}); choose another output"
        ) from None
    old, new = (
        {key: value for key, value in _flat(s.model_dump(mode="json")) if key not in FREE_KEYS}
        for s in (theirs, settings)
    )
    missing = object()
    keys = [key for key in {**old, **new} if old.get(key, missing) != new.get(key, missing)]
    return [f"{key}: {old.get(key, 'unset')!r} there, {new.get(key, 'unset')!r} now" for key in keys]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _environment() -> dict[str, Any]:
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {"commit": _commit(), "python": platform.python_version(), "packages": versions}


def _commit() -> str | None:
    """HEAD of the checkout this file lies in, with ``+changes`` when files differ; None outside git."""
    root = Path(__file__).resolve().parent.parent
    git = ["git", "-C", str(root)]
    try:
        # ls-files fails where an installed copy merely lies below somebody else's checkout.
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", "align/checkpoint.py"], check=True, capture_output=True
        )
        head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
        changes = subprocess.run([*git, "status", "--porcelain"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def _plain(value: Any) -> float | int | bool | str:
    if isinstance(value, (torch.Tensor, np.generic)):
        value = value.item()
    if not isinstance(value, (bool, int, float, str)):
        raise TypeError(
            f"a metric is a number, a 0-dim tensor, a boolean or text, got {type(value).__name__}"
        )
    return value


def _to_json(value: float | int | bool | str) -> float | int | bool | str:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _sync_tree(root: Path) -> None:
    for folder, _, files in os.walk(root):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))
