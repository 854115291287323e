"""Tensors, optimizer state and random generators on disk, without pickled code.

Reached through ``align.checkpoint``, whose run directories hold these files.
"""

from __future__ import annotations

import base64
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError  # only to catch it: torch raises it for what weights_only refuses
from typing import Any, cast

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file, save_file


class CheckpointError(RuntimeError):
    """A run directory or a checkpoint that cannot be used; the text names the path, the rule and the mend."""


def rng_state() -> dict[str, Any]:
    """State of torch's (CPU and every GPU's), numpy's and python's generators, as plain JSON values."""
    kind, keys, position, has_gauss, cached = cast(tuple[Any, ...], np.random.get_state())
    version, words, gauss = random.getstate()
    return {
        "torch": _encode(torch.get_rng_state()),
        "cuda": [_encode(state) for state in torch.cuda.get_rng_state_all()]
        if torch.cuda.is_available()
        else [],
        "numpy": [kind, [int(k) for k in keys], int(position), int(has_gauss), float(cached)],
        "python": [version, list(words), gauss],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put back what :func:`rng_state` gave. GPU states are skipped when their number differs here."""
    torch.set_rng_state(_decode(state["torch"]))
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_decode(text) for text in state["cuda"]])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))


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


def _encode(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode("ascii")


def _decode(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


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
