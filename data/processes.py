"""Worker processes that do not outlive the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading


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
