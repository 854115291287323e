"""Results as evaluations and reward reports leave them, made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.jsonl import write_json, write_records
from data.schema import Image, Prompt
from data.world.build import WorldRates, WorldSizes, build

#: writes an evaluation's ``results.json`` and its descriptions
WriteEvaluation = Callable[..., dict[str, Any]]
#: writes a reward model's report
WriteReport = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _quiet_progress() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world of 12 scenes a split, with pictures; the benchmarks are cut to 12 questions each."""
    folder = tmp_path_factory.mktemp("world") / "data"
    sizes = WorldSizes(sft=12, human=1, pairs=12, prompts=12, describe=12, pope_images=2)
    build(folder, sizes, WorldRates(), seed=4, workers=1)
    questions = json.loads((folder / "eval/mmhal.json").read_text())
    write_json(folder / "eval/mmhal.json", questions[:12])
    return folder


def interval(value: float) -> dict[str, float | int]:
    return {"value": value, "low": value - 0.011, "high": value + 0.012, "n": 50}


def answers(f1: float, yes: float, unparsed: int) -> dict[str, Any]:
    rule = {"f1": interval(f1), "yes_ratio": interval(yes), "counts": {"unparsed": unparsed}}
    return {"official": rule, "strict": rule}


def descriptions(*values: float) -> dict[str, Any]:
    names = ("hallucination_rate", "chair_i", "recall", "repeats", "words")
    return {"n": 50} | {name: interval(value) for name, value in zip(names, values, strict=True)}


@pytest.fixture
def write_evaluation() -> WriteEvaluation:
    """``write(folder, start, said)``: figures that all differ, counted up from ``start`` in hundredths.

    ``said``: picture -> description; ``yes_no``: id of a POPE question -> answer.
    """

    def write(
        folder: Path,
        start: float,
        said: dict[str, str] | None = None,
        yes_no: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        def at(k: int) -> float:
            return round(start + k / 100, 4)

        benchmarks = {
            "pope": {
                "overall": {"official": {"f1": interval(at(0))}, "strict": {"f1": interval(at(1))}},
                "splits": {"random": answers(0, at(2), 3), "popular": answers(0, at(4), 4)},
            },
            "mmhal": {"official": {"score": interval(at(5)), "hallucination_rate": interval(at(6))}},
            "describe": descriptions(*map(at, range(10, 15))),
            "describe@0.7": descriptions(*map(at, range(20, 25))),
        }
        write_json(folder / "results.json", {"model": "m", "benchmarks": benchmarks})
        rows = [
            {
                "benchmark": "describe",
                "id": f"describe/{name}",
                "image": name,
                "question": "What?",
                "response": text,
            }
            for name, text in (said or {}).items()
        ]
        asked = [
            {"benchmark": "pope", "id": name, "image": "w", "question": "Is there?", "response": text}
            for name, text in (yes_no or {}).items()
        ]
        for how, answered in (("t0", rows + asked), ("t0.7", rows)):
            (folder / how).mkdir(parents=True, exist_ok=True)
            (folder / how / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answered))
        return benchmarks

    return write


@pytest.fixture
def write_report() -> WriteReport:
    """``write(root, name, start, **changes)``: a reward report; ``changes`` replace whole kinds of pairs."""

    def write(root: Path, name: str, start: float, **changes: Any) -> dict[str, Any]:
        def pairs(k: int) -> dict[str, Any]:
            value = round(start + k / 100, 4)
            more = {"loss": 0.5, "equal_length_n": 9}
            lengths = {"equal_length_accuracy": value + 0.001, "shorter_accuracy": value + 0.002}
            return interval(value) | more | lengths | {"accuracy": value, "length_correlation": value + 0.003}

        found = {"noisy": pairs(0), "clean": pairs(10), "hallucination": pairs(20)}
        found |= {"agreement": {"share": 0.69, "n": 50}} | changes
        write_json(root / f"{name}_report" / "results.json", found)
        return found

    return write


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Prompts without pictures and one whose picture is missing from the records."""
    write_records(tmp_path / "bare.jsonl", [Prompt(id="bare", question="What is there?")])
    write_records(
        tmp_path / "far.jsonl",
        [
            Prompt(
                id="far", question="What is there?", image=Image(id="w9-000001", path="images/w9-000001.png")
            )
        ],
    )
    return tmp_path
