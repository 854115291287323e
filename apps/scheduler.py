"""Run a graph of steps in worker processes with one thread each.

A worker outlives its steps (torch and its kin load once) but never the process that started it. When a
step fails, or the run is interrupted, the other workers are ended at once: every step can be continued.
"""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.processes import end_with_parent

#: whose error texts are written for the user
OWN = ("apps", "align", "data", "evals")


class StepError(RuntimeError):
    """A step that failed: one line that names it and says why."""


@dataclass(frozen=True)
class Step:
    """One node: ``run`` (a module-level function, so that a worker can import it) with its arguments."""

    name: str
    run: Callable[..., None]
    arguments: dict[str, Any]
    #: names of the steps that must have ended before
    needs: tuple[str, ...] = ()
    #: exists once the step has finished: such a step is not run
    marker: Path | None = None

    @property
    def is_done(self) -> bool:
        return self.marker is not None and self.marker.exists()


@dataclass
class Progress:
    """Where a graph stands; handed to ``on_change``."""

    steps: Sequence[Step]
    running: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    #: nothing runs any more: all is done, or a step failed, or the run was interrupted
    ended: bool = False
    failure: str | None = None

    @property
    def finished(self) -> bool:
        return len(self.done) == len(self.steps)


def run_steps(
    steps: Sequence[Step],
    *,
    workers: int = 2,
    on_change: Callable[[Progress], None] | None = None,
    every: float = 5.0,
) -> None:
    """Run the steps that are not done yet, each after those that it needs, ``workers`` at a time.

    ``on_change`` hears of every start and end, of the time passing (each ``every`` seconds) and of the end.

    Raises:
        StepError: a step failed; the others were stopped.
        ValueError: the graph has two steps of one name, an unknown need, or a circle.
    """
    check_graph(steps)
    state = Progress(steps, done={step.name for step in steps if step.is_done})
    notify = on_change or (lambda _: None)
    # inherited by the workers, where it must stand before numpy and torch load: threads of two workers would
    # fight over the cores
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    try:
        with worker_pool(workers) as pool:
            _schedule(pool, state, workers, notify, every)
    finally:
        state.running.clear()
        state.ended = True
        notify(state)


def check_graph(steps: Sequence[Step]) -> None:
    """Raise ValueError unless the steps can be put in an order."""
    names = [step.name for step in steps]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"steps {twice} stand in the graph twice; give each its own name")
    if unknown := sorted({need for step in steps for need in step.needs} - set(names)):
        raise ValueError(f"steps need {unknown}, which are not in the graph; add them")
    done: set[str] = set()
    left = list(steps)
    while ready := [step for step in left if set(step.needs) <= done]:
        done |= {step.name for step in ready}
        left = [step for step in left if step.name not in done]
    if left:
        raise ValueError(f"steps {[step.name for step in left]} need each other in a circle; break it")


def _schedule(
    pool: ProcessPoolExecutor,
    state: Progress,
    workers: int,
    notify: Callable[[Progress], None],
    every: float,
) -> None:
    waiting = [step for step in state.steps if step.name not in state.done]
    futures: dict[Future[None], Step] = {}
    while waiting or futures:
        ready = [step for step in waiting if set(step.needs) <= state.done]
        for step in ready[: workers - len(futures)]:
            waiting.remove(step)
            futures[pool.submit(step.run, **step.arguments)] = step
            state.running.add(step.name)
        notify(state)
        ended, _ = wait(futures, timeout=every, return_when=FIRST_COMPLETED)
        for future in ended:
            error = future.exception()
            if error is not None:
                state.failure = explain(futures[future].name, error, sorted(state.running))
                raise StepError(state.failure) from error
        for future in ended:
            name = futures.pop(future).name
            state.running.discard(name)
            state.done.add(name)


def explain(name: str, error: BaseException, running: Sequence[str]) -> str:
    """One line for the failure of step ``name`` while ``running`` (itself included) ran."""
    if isinstance(error, BrokenProcessPool):
        # the pool does not say which of its workers died
        return (
            f"a worker process was killed while {' and '.join(running)} ran (out of memory?); "
            "start the same command again to go on"
        )
    text = " ".join(str(error).split())
    if type(error).__module__.split(".")[0] not in OWN:
        text = f"{type(error).__name__}: {text} (ALIGN_DEBUG=1 shows where)"
    return f"step {name}: {text}"


@contextlib.contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of fresh processes; when the block ends by an exception, running workers are ended at once."""
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker)
    completed = False
    try:
        yield pool
        completed = True
    finally:
        if not completed:
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()
        pool.shutdown(cancel_futures=True)


def start_worker() -> None:
    """What every worker does first."""
    # Ctrl-C reaches the whole group: the parent hears it and ends its workers, which need not say a word
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    sys.stderr = NoTerminal(io.BufferedWriter(io.FileIO(2, "w", closefd=False)), line_buffering=True)
    silence_third_parties()


class NoTerminal(io.TextIOWrapper):
    """Standard error for messages only: no progress bar of a worker is drawn over another's."""

    def isatty(self) -> bool:
        return False


def silence_third_parties() -> None:
    """Keep warnings off the terminal that ask nothing of the user."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers(\.|$)")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
