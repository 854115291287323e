"""Finished evaluations, read back: of a model (``align eval run``) or of answers (``align eval score``)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from align.config import BenchmarkSettings, EvalSettings, ScoreSettings
from apps.benchmarks import benchmarks_of
from data.jsonl import DataError, read_json, read_records, read_text
from data.schema import Verdict
from data.world.build import read_scenes
from evals.pope import PopeBenchmark
from evals.runner import Benchmark


@dataclass(frozen=True)
class Part:
    """What was answered at one temperature."""

    #: benchmark -> id -> response
    responses: dict[str, dict[str, str]] = field(default_factory=dict)
    #: judge -> (id, question) -> verdict; ids alone repeat from benchmark to benchmark
    verdicts: dict[str, dict[tuple[str, str], Verdict]] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One finished evaluation."""

    folder: Path
    settings: BenchmarkSettings
    results: dict[str, Any]
    #: "" for the run's own temperature, "@0.7" for a further one: what its benchmarks' names end in
    parts: dict[str, Part]

    @property
    def name(self) -> str:
        return str(self.results["model"])

    @property
    def benchmarks(self) -> dict[str, Any]:
        """Figures by benchmark."""
        return dict(self.results["benchmarks"])


def read_run(folder: Path) -> Run:
    """A finished evaluation's folder. DataError where it is none."""
    if not (folder / "results.json").is_file() or not (folder / "settings.yaml").is_file():
        mend = "give the output of `align eval run` or `align eval score`, finished"
        raise DataError("no finished evaluation in it", file=str(folder), mend=mend)
    values = yaml.safe_load(read_text(folder / "settings.yaml"))
    if "answers" in values:
        settings: BenchmarkSettings = ScoreSettings.model_validate(values)
        inside = {"": folder}
    else:
        settings = EvalSettings.model_validate(values)
        main = settings.generate.temperature
        inside = {"": folder / f"t{main:g}"}
        inside |= {f"@{t:g}": folder / f"t{t:g}" for t in settings.describe_temperatures if t != main}
    parts = {suffix: _part(path) for suffix, path in inside.items()}
    return Run(folder, settings, read_json(folder / "results.json"), parts)


def _part(folder: Path) -> Part:
    responses: dict[str, dict[str, str]] = {}
    for line in read_text(folder / "responses.jsonl").splitlines():
        row = json.loads(line)
        responses.setdefault(row["benchmark"], {})[row["id"]] = row["response"]
    records = read_records(folder / "verdicts.jsonl", "verdict", strict=True)
    return Part(responses, by_judge(v for v in records if isinstance(v, Verdict)))


def by_judge(verdicts: Iterable[Verdict]) -> dict[str, dict[tuple[str, str], Verdict]]:
    """Judge -> (id, question) -> verdict."""
    found: dict[str, dict[tuple[str, str], Verdict]] = {}
    for verdict in verdicts:
        found.setdefault(verdict.judge, {})[verdict.id, verdict.question] = verdict
    return found


def answered(run: Run) -> Iterator[tuple[str, str, Benchmark]]:
    """(name in the results, part, benchmark) of everything that a run answered.

    Raises:
        DataError: a file of its benchmarks is gone, or has changed since.
    """
    scenes = read_scenes(Path(run.settings.world)) if run.settings.world else {}
    for benchmark in benchmarks_of(run.settings, scenes):
        for suffix, part in run.parts.items():
            if benchmark.name in part.responses:
                check_asked(benchmark, run)
                yield benchmark.name + suffix, suffix, benchmark


def check_asked(benchmark: Benchmark, run: Run) -> None:
    """Raise DataError unless the benchmark's files still hold the questions that the run answered."""
    if isinstance(benchmark, PopeBenchmark):
        now = {split.name: split.sha256 for split in benchmark.splits}
    else:
        now = {"": getattr(benchmark, "sha256", "")}
    then = _hashes(run.benchmarks[benchmark.name])
    for part in now.keys() & then.keys():
        if now[part] != then[part]:
            name = f"{benchmark.name} ({part})" if part else benchmark.name
            rule = f"{name}: the questions have changed since they were asked"
            raise DataError(rule, file=str(run.folder), mend="put the old file back, or evaluate again")


def check_version(name: str, a: Run, b: Run) -> None:
    """Raise DataError unless both runs were asked the same questions (by hash)."""
    hashes = [_hashes(run.benchmarks[name]) for run in (a, b)]
    for part in hashes[0].keys() & hashes[1].keys():
        if hashes[0][part] != hashes[1][part]:
            rule = f"{name}: the two runs were asked different questions ({part or 'sha256'} differs)"
            raise DataError(rule, file=str(b.folder), mend="evaluate both on the same files")


def _hashes(found: Mapping[str, Any]) -> dict[str, str]:
    if "splits" in found:
        return {name: split["sha256"] for name, split in found["splits"].items()}
    return {"": found["sha256"]} if "sha256" in found else {}
