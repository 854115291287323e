"""Finished evaluations, read back: of a model (``align eval run``) or of answers (``align eval score``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from align.config import EvalSettings, ScoreSettings
from apps.benchmarks import benchmarks_of
from data.jsonl import DataError, read_json, read_records, read_rows, read_text
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
    settings: EvalSettings | ScoreSettings
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
    results = read_json(folder / "results.json")
    if not isinstance(results, dict) or not {"model", "benchmarks"} <= results.keys():
        mend = "give the output of `align eval run` or `align eval score`"
        raise DataError("not the results of one evaluation", file=str(folder / "results.json"), mend=mend)
    settings = _settings(folder / "settings.yaml")
    if isinstance(settings, ScoreSettings):
        inside = {"": folder}
    else:
        main = settings.generate.temperature
        inside = {"": folder / f"t{main:g}"}
        inside |= {f"@{t:g}": folder / f"t{t:g}" for t in settings.describe_temperatures if t != main}
    parts = {suffix: _part(path) for suffix, path in inside.items()}
    return Run(folder, settings, results, parts)


def _settings(path: Path) -> EvalSettings | ScoreSettings:
    try:
        values = yaml.safe_load(read_text(path))
        kind: type[EvalSettings | ScoreSettings] = ScoreSettings if "answers" in values else EvalSettings
        return kind.model_validate(values)
    except (yaml.YAMLError, ValidationError, TypeError) as error:
        reason = " ".join(str(error).split())
        mend = "evaluate again with this version"
        raise DataError(f"not settings of this version ({reason})", file=str(path), mend=mend) from None


def _part(folder: Path) -> Part:
    responses: dict[str, dict[str, str]] = {}
    if not (folder / "responses.jsonl").exists():
        # a further temperature that no benchmark is asked at
        return Part()
    for line, row in read_rows(folder / "responses.jsonl"):
        if isinstance(row, DataError):
            raise row
        try:
            responses.setdefault(row["benchmark"], {})[row["id"]] = row["response"]
        except KeyError as error:
            rule = f"no {error.args[0]!r} in the row"
            raise line.locate(DataError(rule, mend="evaluate again")) from None
    records = read_records(folder / "verdicts.jsonl", "verdict", strict=True)
    return Part(responses, by_judge(v for v in records if isinstance(v, Verdict)))


def by_judge(verdicts: Iterable[Verdict]) -> dict[str, dict[tuple[str, str], Verdict]]:
    """Judge -> (id, question) -> verdict."""
    found: dict[str, dict[tuple[str, str], Verdict]] = {}
    for verdict in verdicts:
        found.setdefault(verdict.judge, {})[verdict.id, verdict.question] = verdict
    return found


def answered(run: Run, benchmarks: Sequence[Benchmark] | None = None) -> Iterator[tuple[str, str, Benchmark]]:
    """(name in the results, part, benchmark) of everything that a run answered.

    ``benchmarks`` are read from the run's files, without their judges, where they are not at hand.

    Raises:
        DataError: a file of its benchmarks is gone, or has changed since.
    """
    if benchmarks is None:
        scenes = read_scenes(Path(run.settings.world)) if run.settings.world else {}
        benchmarks = benchmarks_of(run.settings, scenes, judged=False)
    for benchmark in benchmarks:
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
