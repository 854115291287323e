"""``align eval compare``: two evaluated models on the items that both answered, joined by id."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from align.config import BenchmarkSettings, EvalSettings, ScoreSettings
from apps.benchmarks import benchmarks_of
from apps.eval_page import intervals
from data.jsonl import DataError, read_json, read_records, write_json
from data.schema import Verdict
from data.world.build import read_scenes
from evals import metrics
from evals.metrics import interval_from
from evals.report import Cell, Page, Section, Table, Text, write_report
from evals.runner import Benchmark

#: changed items shown on the page; the JSON has all
SHOWN = 50


@dataclass(frozen=True)
class Run:
    """What one evaluation left: of a model (``align eval run``) or of a file (``align eval score``)."""

    folder: Path
    settings: BenchmarkSettings
    results: dict[str, Any]
    #: benchmark -> id -> response
    responses: dict[str, dict[str, str]]
    #: judge -> (id, question) -> verdict; ids alone repeat from benchmark to benchmark
    verdicts: dict[str, dict[tuple[str, str], Verdict]]

    @property
    def name(self) -> str:
        return str(self.results["model"])


def read_run(folder: Path) -> Run:
    """A finished evaluation's folder. DataError where it is none."""
    if not (folder / "results.json").is_file() or not (folder / "settings.yaml").is_file():
        mend = "give the output of `align eval run` or `align eval score`, finished"
        raise DataError("no finished evaluation in it", file=str(folder), mend=mend)
    values = yaml.safe_load((folder / "settings.yaml").read_text("utf-8"))
    if "answers" in values:
        settings: BenchmarkSettings = ScoreSettings.model_validate(values)
        inside = folder
    else:
        settings = EvalSettings.model_validate(values)
        inside = folder / f"t{settings.generate.temperature:g}"
    responses: dict[str, dict[str, str]] = {}
    for line in (inside / "responses.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        responses.setdefault(row["benchmark"], {})[row["id"]] = row["response"]
    records = read_records(inside / "verdicts.jsonl", "verdict", strict=True)
    verdicts: dict[str, dict[tuple[str, str], Verdict]] = {}
    for v in records:
        if isinstance(v, Verdict):
            verdicts.setdefault(v.judge, {})[v.id, v.question] = v
    return Run(folder, settings, read_json(folder / "results.json"), responses, verdicts)


def run(first: Path, second: Path, output: Path) -> Path:
    """Write ``compare.json`` and ``compare.html``: first minus second, benchmark by benchmark.

    Raises:
        DataError: a folder without a finished evaluation, nothing that both answered, or two versions of a
            benchmark's questions.
    """
    a, b = read_run(first), read_run(second)
    scenes = read_scenes(Path(a.settings.world)) if a.settings.world else {}
    found: dict[str, Any] = {}
    for benchmark in benchmarks_of(a.settings, scenes):
        if benchmark.name in a.responses and benchmark.name in b.responses:
            check_version(benchmark.name, a, b)
            found[benchmark.name] = compare(benchmark, a, b)
    if not found:
        mend = f"{first} has {', '.join(a.responses)}; {second} has {', '.join(b.responses)}"
        raise DataError("the two share no benchmark", file=str(second), mend=mend)
    whole = {"first": a.name, "second": b.name, "benchmarks": found}
    write_json(output / "compare.json", whole)
    write_report(output / "compare.html", page_of(whole))
    return output


def check_version(name: str, a: Run, b: Run) -> None:
    """Raise DataError unless both runs were asked the same questions (by hash)."""
    hashes = [_hashes(run.results["benchmarks"][name]) for run in (a, b)]
    for part in hashes[0].keys() & hashes[1].keys():
        if hashes[0][part] != hashes[1][part]:
            rule = f"{name}: the two runs were asked different questions ({part or 'sha256'} differs)"
            raise DataError(rule, file=str(b.folder), mend="evaluate both on the same files")


def _hashes(found: Mapping[str, Any]) -> dict[str, str]:
    if "splits" in found:
        return {name: split["sha256"] for name, split in found["splits"].items()}
    return {"": found["sha256"]} if "sha256" in found else {}


def compare(benchmark: Benchmark, a: Run, b: Run) -> dict[str, Any]:
    """One benchmark: paired figures by rule, and the items whose verdict changed."""
    said_a, said_b = a.responses[benchmark.name], b.responses[benchmark.name]
    both = said_a.keys() & said_b.keys()
    kept = benchmark.only(both)
    ids = [item.id for item in kept.items]
    answers = [{name: said[name] for name in ids} for said in (said_a, said_b)]
    questions = [(item.id, item.question) for item in kept.items]
    result: dict[str, Any] = {"n": len(ids), "only_first": len(said_a.keys() - both),
                              "only_second": len(said_b.keys() - both)}  # fmt: skip
    by_rule = getattr(kept, "compare", None)
    judges = sorted(judge for judge, found in a.verdicts.items() if any(q in found for q in questions))
    if by_rule is None:
        # rated by a judge: its verdicts are compared
        result["by_judge"] = {judge: _rated(_both(judge, questions, a, b)) for judge in judges}
    elif len(judges) > 1:
        rules = [judge.removeprefix(f"{benchmark.name}/") for judge in judges]
        result["by_rule"] = {rule: by_rule(*answers, rule=rule) for rule in rules}
    else:
        result |= by_rule(*answers)
    result["changed"] = {judge: list(changed(_both(judge, questions, a, b))) for judge in judges}
    return result


def _both(judge: str, questions: Sequence[tuple[str, str]], a: Run, b: Run) -> list[tuple[Verdict, Verdict]]:
    """The judge's verdicts on the questions that it judged in both runs."""
    one, two = a.verdicts.get(judge, {}), b.verdicts.get(judge, {})
    return [(one[q], two[q]) for q in questions if q in one and q in two]


def _rated(both: Sequence[tuple[Verdict, Verdict]]) -> dict[str, Any]:
    scores = [(x.score, y.score) for x, y in both if x.score is not None and y.score is not None]
    if not scores:
        return {"n": 0}
    first, second = zip(*scores, strict=True)
    columns = (metrics.mean_columns(first), metrics.mean_columns(second))
    return {"n": len(scores), "score": metrics.paired_difference(*columns, statistic=metrics.ratio).as_dict()}


def changed(both: Sequence[tuple[Verdict, Verdict]]) -> Iterator[dict[str, Any]]:
    """Items that the two runs' verdicts score differently, with both answers."""
    for one, two in both:
        if one.score != two.score:
            yield {
                "id": one.id,
                "question": one.question,
                "first": {"response": one.response, "label": one.label, "score": one.score},
                "second": {"response": two.response, "label": two.label, "score": two.score},
            }


# --- the page ---


def page_of(whole: Mapping[str, Any]) -> Page:
    """A table of differences and one of changed items for each benchmark."""
    sections: list[Section] = []
    for name, found in whole["benchmarks"].items():
        figures = {key: value for key, value in found.items() if key != "changed"}
        rows: list[list[Cell]] = [[label, interval_from(f), f["n"]] for label, f in intervals(figures)]
        alone = f"{found['only_first']} and {found['only_second']} items were answered by one of them alone."
        note = f"{whole['first']} − {whole['second']}, {found['n']} items that both answered; {alone}"
        sections.append(Table(name, ["difference", "value", "n"], rows, note))
        for judge, items in found["changed"].items():
            if not items:
                sections.append(Text(f"No verdict of {judge} changed.", title=f"{name}: changed items"))
                continue
            cells: list[list[Cell]] = [
                [item["id"], item["question"], *(_told(item[side]) for side in ("first", "second"))]
                for item in items[:SHOWN]
            ]
            columns = ["id", "question", whole["first"], whole["second"]]
            title = f"{name}: {len(items)} changed items ({judge})"
            more = f"The first {SHOWN}; compare.json has all." if len(items) > SHOWN else ""
            sections.append(Table(title, columns, cells, more))
    title = f"{whole['first']} against {whole['second']}"
    return Page(
        title, sections, footer="Intervals: 95 % paired bootstrap. Where 0 lies in one, nothing is shown."
    )


def _told(side: Mapping[str, Any]) -> str:
    return f"{side['response']} [{side['label']}]"
