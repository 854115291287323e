"""What the studies report of each seed, means over seeds with their intervals, and tables as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from apps.demo import yes_ratio
from evals.metrics import Interval
from evals.report import Table

#: two-sided 95 % quantiles of Student's t for 1 to 15 degrees of freedom
T95 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314,
)  # fmt: skip
#: the same of the normal distribution
Z95 = 1.959964


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
    "MMHal-style score": lambda benchmarks: value(benchmarks["mmhal"]["score"]),
    "halluc. rate, T=0.7": _described("describe@0.7", "hallucination_rate"),
    "CHAIR_i, T=0.7": _described("describe@0.7", "chair_i"),
    "recall, T=0.7": _described("describe@0.7", "recall"),
    "repeats, T=0.7": _described("describe@0.7", "repeats"),
    "words, T=0.7": _described("describe@0.7", "words"),
    "halluc. rate, greedy": _described("describe", "hallucination_rate"),
    "CHAIR_i, greedy": _described("describe", "chair_i"),
    "recall, greedy": _described("describe", "recall"),
}


def t95(degrees: int) -> float:
    """Two-sided 95 % quantile of Student's t.

    Beyond the table: Fisher and Cornish's expansion in 1/degrees (Abramowitz and Stegun, 26.7.5).
    """
    if degrees <= len(T95):
        return T95[degrees - 1]
    z = Z95
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def over_seeds(values: Iterable[float]) -> Interval:
    """Mean of one value a seed with Student's t interval (95 %); ``n`` is the number of seeds.

    Undefined values (NaN) are left out, and ``n`` says so. One seed has no interval.
    """
    x = np.asarray([v for v in values if math.isfinite(v)], float)
    n = len(x)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    half = t95(n - 1) * float(x.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    mean = float(x.mean())
    return Interval(mean, mean - half, mean + half, n)


def as_markdown(table: Table) -> str:
    """A table with its title, for a README; an interval over fewer seeds than the most says how many."""
    intervals = [cell for row in table.rows for cell in row if isinstance(cell, Interval)]
    most = max((cell.n for cell in intervals), default=0)

    def cell(found: Any) -> str:
        if found is None:
            return ""
        if isinstance(found, Interval):
            if not found.n:
                return "–"
            text = f"{found.value:.3f}"
            if math.isfinite(found.low):
                text += f" [{found.low:.3f}, {found.high:.3f}]"
            return text if found.n == most else f"{text} (n = {found.n})"
        return f"{found:.3f}" if isinstance(found, float) else str(found).replace("|", "\\|")

    lines = ["| " + " | ".join(map(cell, row)) + " |" for row in (table.columns, *table.rows)]
    lines.insert(1, "|" + " --- |" * len(table.columns))
    note = f"\n{table.note}\n" if table.note else ""
    return f"**{table.title}**\n\n" + "\n".join(lines) + f"\n{note}"
