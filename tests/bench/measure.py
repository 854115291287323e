"""Ways to do the same work, timed in turns."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping

#: does the work once and returns how many units it did (tokens, turns, steps)
Way = Callable[[], float]


def side_by_side(ways: Mapping[str, Way], repeats: int = 5) -> dict[str, float]:
    """Median units a second of each way, after one round that is not counted.

    The ways take turns inside each round, so that a slow minute of the machine hits all of them. Seconds are
    those of this process's CPU time: with one thread they are the clock's on a free machine, and on a busy
    one they leave out what others took.
    """
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(repeats + 1):
        for name, way in ways.items():
            start = time.process_time()
            units = way()
            if round_:
                rates[name].append(units / (time.process_time() - start))
    return {name: statistics.median(found) for name, found in rates.items()}


def peak_bytes(work: Way) -> int:
    """The most memory that tensors made during ``work`` held at once, above what was there before."""
    import torch

    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as found:
        work()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    return max(itertools.accumulate((e.nbytes() for e in events), initial=0))


def show(title: str, unit: str, rates: Mapping[str, float]) -> None:
    """A small table; each way's rate, and how many times the last way's it is."""
    base = list(rates.values())[-1]
    width = max(map(len, rates))
    print(f"\n{title}\n  {'':{width}}  {unit:>14}  {'times':>6}")
    for name, rate in rates.items():
        print(f"  {name:{width}}  {rate:14.2f}  {rate / base:6.2f}")
