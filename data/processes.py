"""Processes beside each other: workers that end with their parent, folders with one writer."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import threading
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not POSIX: two writers are then the user's care
    fcntl = None  # type: ignore[assignment]

#: what a file system without locks answers (some network ones): likewise
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


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
        BlockingIOError: another process holds it, or this one a second time.
    """
    if fcntl is None:
        yield
        return
    # "a" leaves a file that another holds as it is, its times too
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        try:
            yield
        finally:
            # closing alone would not do where a forked child still has the file open
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)
