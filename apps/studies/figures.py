"""What the studies report of each seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from apps.demo import yes_ratio


def value(found: dict[str, Any]) -> float:
    """The value of an interval as ``Interval.as_dict`` wrote it; NaN where undefined."""
    return number(found["value"])


def number(found: float | None) -> float:
    """NaN in None's place."""
    return math.nan if found is None else float(found)


def _described(decoding: str, figure: str) -> Callable[[dict[str, Any]], float]:
    return lambda benchmarks: value(benchmarks[decoding][figure])


#: column -> a model's figure, from the benchmarks of its ``results.json``
FIGURES: dict[str, Callable[[dict[str, Any]], float]] = {
    "POPE F1": lambda benchmarks: value(benchmarks["pope"]["overall"]["official"]["f1"]),
    "POPE yes-rate": lambda benchmarks: yes_ratio(benchmarks["pope"]),
    "MMHal-style score": lambda benchmarks: value(benchmarks["mmhal"]["official"]["score"]),
    "halluc. rate, T=0.7": _described("describe@0.7", "hallucination_rate"),
    "CHAIR_i, T=0.7": _described("describe@0.7", "chair_i"),
    "recall, T=0.7": _described("describe@0.7", "recall"),
    "repeats, T=0.7": _described("describe@0.7", "repeats"),
    "words, T=0.7": _described("describe@0.7", "words"),
    "halluc. rate, greedy": _described("describe", "hallucination_rate"),
    "CHAIR_i, greedy": _described("describe", "chair_i"),
    "recall, greedy": _described("describe", "recall"),
}


def figure_of(name: str, benchmarks: dict[str, Any]) -> float:
    """One of ``FIGURES``; NaN for a model that did not answer its benchmark (best-of-n)."""
    try:
        return FIGURES[name](benchmarks)
    except KeyError:
        return math.nan
