"""A folder that is written whole or not at all, in the place of an older one."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_folder(directory: str | Path) -> Iterator[Path]:
    """An empty folder to fill; it becomes ``directory`` when the block ends, and vanishes if the block fails.

    Nothing is left beside ``directory`` either way, and an older one stays as it was until the end.
    """
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temp = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        yield temp
        _swap_in(temp, directory)
    finally:
        # gone already when all went well
        shutil.rmtree(temp, ignore_errors=True)


def _swap_in(temp: Path, directory: Path) -> None:
    """Put the finished folder ``temp`` in the place of ``directory`` (same file system).

    If that fails the old ``directory`` is back in its place, and ``temp`` is left to the caller.
    """
    temp.chmod(0o755)
    if not directory.exists():
        os.replace(temp, directory)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}-old-", dir=directory.parent))
    old = aside / directory.name
    try:
        os.replace(directory, old)
        os.replace(temp, directory)
    finally:
        if not directory.exists():
            os.replace(old, directory)
        shutil.rmtree(aside)
