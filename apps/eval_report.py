"""``align eval report``: finished evaluations of several models on one page, and as Markdown for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from apps.eval_gallery import galleries, shown_of
from apps.eval_page import page_of, sections_of
from apps.eval_runs import Run, check_version, read_run
from data.jsonl import DataError, write_json, write_text
from evals.report import Table, as_markdown, write_report


def run(folders: Sequence[str], output: Path, pictures: int = 12) -> Path:
    """Write ``report.html``, ``report.md`` and ``results.json`` of all the runs; the same runs, same bytes.

    ``folders``: each a run's folder, or ``name=folder`` to call its model otherwise than the run does.

    Raises:
        DataError: a folder without a finished evaluation, two of one name, two that were asked different
            versions of a benchmark, or an ``output`` that is a run's.
    """
    if (output / "settings.yaml").exists():
        raise DataError("is a run's own folder", file=str(output), mend="choose another output")
    runs = [named(text) for text in folders]
    check(runs)
    models = {run.name: run.benchmarks for run in runs}
    drawn = {run.name: run.results["decoding"] for run in runs if "decoding" in run.results}
    write_json(output / "results.json", {"models": models})
    tables = [section for section in sections_of(models) if isinstance(section, Table)]
    write_text(output / "report.md", "\n".join(map(as_markdown, tables)))
    write_report(output / "report.html", page_of(models, galleries(shown_of(runs), pictures), drawn))
    return output


def named(text: str) -> Run:
    """The run of ``folder`` or of ``name=folder``."""
    name, equals, folder = text.partition("=")
    if not equals or Path(text).is_dir():
        return read_run(Path(text))
    found = read_run(Path(folder))
    return replace(found, results=found.results | {"model": name})


def check(runs: Sequence[Run]) -> None:
    """Raise DataError unless the models have names of their own and were asked the same."""
    for place, run in enumerate(runs):
        for other in runs[:place]:
            if other.name == run.name:
                rule = f"{other.folder} holds a model of the same name, {run.name!r}"
                mend = f"name them apart, e.g. first={other.folder} second={run.folder}"
                raise DataError(rule, file=str(run.folder), mend=mend)
            for key in run.benchmarks.keys() & other.benchmarks.keys():
                check_version(key, other, run)
