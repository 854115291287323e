"""Tensors and optimizer state on disk, without pickled code.

Reached through ``align.checkpoint``, whose run directories hold these files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError  # only to catch it: torch raises it for what weights_only refuses
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file


class CheckpointError(RuntimeError):
    """A run directory or a checkpoint that cannot be used; the text names the path, the rule and the mend."""


def save_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write named tensors as safetensors, atomically; views and shared storage are copied out."""
    path = Path(path)
    seen: set[int] = set()
    whole: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        address = value.untyped_storage().data_ptr()
        whole[name] = value.clone() if address in seen else value
        seen.add(address)
    _write_atomic(path, lambda temporary: save_file(whole, temporary))


def load_tensors(path: str | Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: the file is missing, cut short or no safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; the checkpoint is incomplete")
    try:
        return load_file(path, device=device)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write an optimizer's or scheduler's ``state_dict()`` atomically; read it with :func:`load_state`."""
    _write_atomic(Path(path), lambda temporary: torch.save(dict(state), temporary))


def load_state(path: str | Path, device: str = "cpu") -> dict[str, Any]:
    """Read what :func:`save_state` wrote: tensors and plain containers only, never code.

    Raises:
        CheckpointError: the file is missing, damaged, or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; the checkpoint is incomplete")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not readable as tensors and plain values ({reason})") from None


def _write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush one file or directory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
