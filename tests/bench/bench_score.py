"""Scoring answers from a file: CPU seconds of 9,000 POPE answers, and of the intervals one by one."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import numpy as np
import pytest

from evals import metrics
from evals.answers import read_answers, score
from evals.pope import PopeBenchmark, read_split
from tests.bench.measure import show, side_by_side

SPLITS = ("random", "popular", "adversarial")


def test_nine_thousand_answers(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = []
    for split in SPLITS:
        questions = [
            {"question_id": k, "image": f"{k // 6}.jpg", "text": f"Is there a {k % 80}?",
             "label": "yes" if k % 2 else "no"}
            for k in range(3000)
        ]  # fmt: skip
        (tmp_path / f"{split}.json").write_text("".join(json.dumps(q) + "\n" for q in questions))
        rows += [
            {"id": f"{split}/{q['question_id']}",
             "answer": rng.choice(["Yes", "No", "Yes, there is a thing.", "No, I cannot see one."])}
            for q in questions
        ]  # fmt: skip
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seconds = []
    for _ in range(5):
        start = time.process_time()
        benchmark = PopeBenchmark(tuple(read_split(tmp_path / f"{s}.json", s) for s in SPLITS))
        answers = read_answers(tmp_path / "answers.jsonl", [i.id for i in benchmark.items], benchmark="pope")
        scored = score(benchmark, answers)
        seconds.append(time.process_time() - start)
    assert scored.result["overall"]["n"] == 9000 and len(scored.verdicts) == 18000
    print(f"\n9,000 POPE answers with 1,000 resamples a figure: {sorted(seconds)[2]:.2f} s CPU (median of 5)")


def test_intervals() -> None:
    """One matrix product for all resamples, and a loop over them."""
    rng = np.random.default_rng(0)
    table = metrics.mean_columns(rng.random(3000) < 0.8)
    images = [k // 6 for k in range(3000)]

    found: dict[str, tuple[float, float]] = {}

    def at_once() -> float:
        interval = metrics.bootstrap(table, metrics.ratio, clusters=images)
        found["at once"] = interval.low, interval.high
        return 1

    def loop() -> float:
        draw = np.random.default_rng(0)
        by_image = table.reshape(500, 6, 2).sum(axis=1)
        drawn = [metrics.ratio(by_image[draw.integers(0, 500, 500)].sum(axis=0)) for _ in range(1000)]
        low, high = np.percentile(drawn, [2.5, 97.5])
        found["loop"] = float(low), float(high)
        return 1

    rates = side_by_side({"all resamples at once": at_once, "a loop over resamples": loop})
    assert found["at once"] == pytest.approx(found["loop"], abs=1e-12)
    show("intervals of 3,000 answers on 500 images", "intervals/s", rates)
