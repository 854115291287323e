"""Processes beside each other: workers that end with their parent, folders with one writer."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not POSIX: two writers are then the user's care
    fcntl = None  # type: ignore[assignment]


def end_with_parent() -> None:
    """Make this worker process end at once when its parent has ended, however that happened.

    For the ``initializer`` of a process pool. A pool's workers otherwise wait for ever after a parent that
    was killed, or go on writing into a folder where a restarted parent's workers already write.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="end-with-parent").start()


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold ``folder`` (``.lock`` in it) while the block runs; the system lets go when the process dies.

    Raises:
        BlockingIOError: another process holds it.
    """
    if fcntl is None:
        yield
        return
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
