"""``align eval score``: benchmarks scored from files of answers; torch is loaded for a local judge alone."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from align.config import ScoreSettings
from apps.benchmarks import benchmarks_of
from apps.eval_gallery import Shown, galleries
from apps.eval_page import page_of
from apps.eval_runs import Part, by_judge
from data.jsonl import DataError, read_rows, write_json, write_records, write_rows, write_text
from data.processes import sole_writer
from data.schema import Verdict
from data.world.build import read_scenes
from evals import answers as answer_files
from evals.answers import Answers, read_answers
from evals.mmhal import MmhalBenchmark
from evals.objects import ObjectBenchmark
from evals.pope import PopeBenchmark
from evals.report import write_report
from evals.runner import Benchmark, row_of, writable

log = logging.getLogger(__name__)


def run(settings: ScoreSettings) -> Path:
    """Write responses, verdicts, ``results.json`` and ``report.html``; the same files give the same bytes.

    Answers that are missing, stand twice, or belong elsewhere are counted in each benchmark's ``answers``
    and told in a warning; its figures are of the items that have one.

    Raises:
        DataError: a benchmark's own files cannot be read, or a file of answers is not there or has none.
    """
    scenes = read_scenes(Path(settings.world)) if settings.world else {}
    benchmarks = benchmarks_of(settings, scenes)
    files = {benchmark.name: files_of(settings, benchmark) for benchmark in benchmarks}
    output = Path(settings.output)
    if settings.dry_run:
        return output
    output.mkdir(parents=True, exist_ok=True)
    with sole_writer(output):
        results: dict[str, Any] = {}
        verdicts: list[Verdict] = []
        responses: list[dict[str, str]] = []
        shown: list[Shown] = []
        for benchmark in benchmarks:
            benchmark, found = answers_to(settings, benchmark, files[benchmark.name])
            told(benchmark.name, found)
            scored = answer_files.score(benchmark, found)
            results[benchmark.name] = scored.result
            verdicts += [writable(verdict) for verdict in scored.verdicts]
            part = Part({benchmark.name: dict(found.texts)}, by_judge(scored.verdicts))
            shown.append(Shown(benchmark.name, benchmark, {settings.name: part}, settings.images))
            responses += [
                row_of(benchmark.name, i, found.texts[i.id]) for i in benchmark.items if i.id in found.texts
            ]
        whole = {"model": settings.name, "benchmarks": results}
        write_text(
            output / "settings.yaml", yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
        )
        write_rows(output / "responses.jsonl", responses)
        write_records(output / "verdicts.jsonl", verdicts)
        write_json(output / "results.json", whole)
        write_report(output / "report.html", page_of({settings.name: results}, galleries(shown)))
    return output


def files_of(settings: ScoreSettings, benchmark: Benchmark) -> dict[str, Path]:
    """Part of the ids (a POPE split's, else "") -> the file that answers it."""
    if isinstance(settings.answers, str):
        own = parts(benchmark)
        return {own[0] if len(own) == 1 else "": Path(settings.answers)}
    found = {}
    for part in parts(benchmark):
        name = f"pope_{part}" if part else benchmark.name
        if name in settings.answers:
            found[part] = Path(settings.answers[name])
    if not found:
        mend = f"give answers.{benchmark.name}=FILE, or one file for all"
        raise DataError(f"no file of answers to {benchmark.name}", key="answers", mend=mend)
    return found


def parts(benchmark: Benchmark) -> list[str]:
    """POPE's splits, which may be answered in files of their own; "" for the whole of another benchmark."""
    return [split.name for split in benchmark.splits] if isinstance(benchmark, PopeBenchmark) else [""]


def answers_to(
    settings: ScoreSettings, benchmark: Benchmark, files: Mapping[str, Path]
) -> tuple[Benchmark, Answers]:
    """The benchmark with the answers to it.

    CHAIR without a list of images is about the images that were described, as its official scorer is.
    """
    if isinstance(benchmark, ObjectBenchmark) and benchmark.name == "chair" and not settings.chair.images:
        named = {name for path in files.values() for name in ids_in(path)}
        known = [item.id for item in benchmark.items if item.id in named]
        if known:
            benchmark = benchmark.only(set(known))
    wanted = [item.id for item in benchmark.items]
    together: dict[str, Any] = {"texts": {}} | dict.fromkeys(answer_files.TROUBLES, ())
    for part, path in files.items():
        prefix = f"{part}/" if part else ""
        ids = [name for name in wanted if name.startswith(prefix)]
        found = read_answers(
            path, ids, benchmark=benchmark.name, sha256=hash_of(benchmark, part), prefix=prefix,
            identify=by_question(benchmark),
        )  # fmt: skip
        together["texts"] |= found.texts
        for name in answer_files.TROUBLES:
            together[name] += getattr(found, name)
    together["missing"] = tuple(name for name in wanted if name not in together["texts"])
    if settings.limit is not None:
        # ids beyond the limit are not strangers
        together["unknown"] = ()
    if not together["texts"]:
        first = next((name for path in files.values() for name in ids_in(path)), None)
        theirs = "without any id" if first is None else f"its first id is {first!r}"
        rule = f"no answer in it is to an item of {benchmark.name} ({theirs}, the benchmark's {wanted[0]!r})"
        mend = "give the answers to this benchmark, under its ids"
        raise DataError(rule, file=", ".join(map(str, files.values())), mend=mend)
    return benchmark, Answers(**together)


def by_question(benchmark: Benchmark) -> Callable[[Mapping[str, Any]], str | None] | None:
    """MMHal-Bench's response file has no ids: its rows are known by image and question."""
    if not isinstance(benchmark, MmhalBenchmark):
        return None
    questions = {item.id: benchmark.question(item.id) for item in benchmark.items}
    known: dict[Any, str] = {(q.image_id, q.question): name for name, q in questions.items()}

    def identify(row: Mapping[str, Any]) -> str | None:
        return known.get((row.get("image_id"), row.get("question"))) if "model_answer" in row else None

    return identify


def ids_in(path: Path) -> Iterator[str]:
    """The ids that a file of answers names."""
    for _, row in read_rows(path):
        if not isinstance(row, DataError):
            # a row without an id is counted where the answers are read
            with contextlib.suppress(DataError):
                yield answer_files.id_of(row)


def hash_of(benchmark: Benchmark, part: str) -> str | None:
    """The hash that answers may name, of a POPE split its own; None for POPE's splits in one file."""
    if isinstance(benchmark, PopeBenchmark):
        return next((split.sha256 for split in benchmark.splits if split.name == part), None)
    return getattr(benchmark, "sha256", None)


def told(name: str, answers: Answers) -> None:
    """One warning with everything that does not fit."""
    if answers.complete:
        return
    counts = (f"{len(getattr(answers, kind))} {kind.replace('_', ' ')}" for kind in answer_files.TROUBLES
              if getattr(answers, kind))  # fmt: skip
    log.warning("%s: %d answers; %s (see results.json)", name, len(answers.texts), ", ".join(counts))
