"""What the studies report of each seed, means over seeds with their intervals, and tables as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from apps.demo import yes_ratio
from evals.metrics import Interval
from evals.report import Table


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
