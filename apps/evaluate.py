"""``align eval``: a model, here or behind an endpoint, on the benchmarks, by the shared runner."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from align.checkpoint import RunDir
from align.checkpoint import progress as track
from align.config import EvalSettings, GenerateSettings
from align.models.lmm import check_model
from align.models.lmm import load as load_lmm
from align.render import Renderer
from apps.answerer import Answerer, of_benchmark
from apps.benchmarks import benchmarks_of, check_pictures, endpoint_of
from apps.eval_gallery import galleries, shown_of
from apps.eval_page import page_of
from apps.eval_runs import read_run
from data.formats.mmhal import write as write_mmhal
from data.jsonl import write_json
from data.world.build import read_scenes
from evals.answers import score_partial
from evals.endpoint import EndpointAnswerer
from evals.journal import Journal
from evals.mmhal import MmhalBenchmark
from evals.objects import ObjectBenchmark
from evals.report import write_report
from evals.runner import Benchmark, Progress, YesNo, ranked
from evals.runner import run as run_benchmarks

log = logging.getLogger(__name__)


def run(settings: EvalSettings) -> Path:
    """Write responses, verdicts, ``results.json`` and ``report.html``; answered items are not asked again.

    Raises:
        DataError: a benchmark, its pictures, verdicts or truth are missing or unreadable.
        ModelError: the checkpoint is no multimodal model. CheckpointError: the output is another run's.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    scenes = read_scenes(Path(settings.world)) if settings.world else {}
    benchmarks = benchmarks_of(settings, scenes)
    check_pictures(settings, benchmarks)
    if settings.model is not None:
        check_model(settings.model)
    if settings.dry_run:
        return Path(settings.output)
    with RunDir.create(settings.output, settings, "eval") as run_dir:
        if run_dir.is_done:
            return run_dir.path
        model = name_of(settings)
        found = measure(settings, benchmarks, run_dir.path, model)
        hand_out(benchmarks, run_dir.path, settings.generate.temperature)
        drawn = decoding(settings)
        write_json(run_dir.path / "results.json", {"model": model, "decoding": drawn, "benchmarks": found})
        shown = galleries(shown_of([read_run(run_dir.path)], benchmarks))
        write_report(run_dir.path / "report.html", page_of({model: found}, shown, {model: drawn}))
        lacking = lacks(settings, found)
        if lacking:
            log.warning("%s: the same command with --resume asks again", "; ".join(lacking))
        else:
            run_dir.done()
    return run_dir.path


def lacks(settings: EvalSettings, found: Mapping[str, Any]) -> list[str]:
    """Answers and verdicts that a second run might get, in words."""
    missing = {name: one["answers"]["missing"]["n"] for name, one in found.items() if "answers" in one}
    asks = settings.judge is not None and not settings.verdicts
    unjudged = {name: len(one["unjudged"]) for name, one in found.items() if asks and one.get("unjudged")}
    kinds = {"answers": missing, "verdicts": unjudged}
    return [
        f"{kind} are missing ({', '.join(f'{n} of {name}' for name, n in of.items())})"
        for kind, of in kinds.items()
        if of
    ]


def decoding(settings: EvalSettings) -> str:
    """How the answers were drawn, for the tables' notes."""
    how = settings.generate
    drawn = "greedy" if how.temperature == 0 else f"temperature {how.temperature:g}, top-p {how.top_p:g}"
    told = f"{drawn}, at most {how.max_new_tokens} new tokens"
    return f"{told}; yes/no by the first token" if settings.yes_no == "next_token" else told


def name_of(settings: EvalSettings) -> str:
    """What the tables call the model."""
    if settings.endpoint is not None:
        return endpoint_of(settings.endpoint).name
    assert settings.model is not None
    return settings.model.name


def hand_out(benchmarks: Sequence[Benchmark], folder: Path, temperature: float) -> None:
    """``mmhal_responses.json``: the answers to MMHal's questions in its own layout, for judges elsewhere."""
    for benchmark in benchmarks:
        if isinstance(benchmark, MmhalBenchmark):
            rows = Journal(folder / f"t{temperature:g}" / "responses.jsonl").rows
            said = {row["id"]: row["response"] for row in rows if row["benchmark"] == benchmark.name}
            if len(said) < len(benchmark.items):
                # an endpoint left some out; the file wants all
                continue
            path = folder / "mmhal_responses.json"
            write_mmhal(path, benchmark.answered(said))
            if benchmark.judge is None:
                log.warning("MMHal's answers are not rated: rate %s, then evaluate with verdicts=FILE", path)


def measure(
    settings: EvalSettings, benchmarks: Sequence[Benchmark], folder: Path, model: str
) -> dict[str, Any]:
    """Figures by benchmark; "describe@0.7" are the descriptions of a further temperature."""
    answers: dict[str, Any] = {}
    lmm = None if settings.model is None else load_lmm(settings.model)
    main = settings.generate.temperature
    for temperature in dict.fromkeys([main, *settings.describe_temperatures]):
        how = settings.generate.model_copy(update={"temperature": temperature})
        asked = [b for b in benchmarks if temperature == main or isinstance(b, ObjectBenchmark)]
        part = folder / f"t{temperature:g}"
        wanted: dict[str, Any] = {"generate": how.model_dump(), "seed": settings.seed}
        p_yes = None
        if settings.yes_no == "next_token":
            wanted["yes_no"], p_yes = settings.yes_no, Journal(part / "probabilities.jsonl")
        answerer: Answerer | EndpointAnswerer
        if lmm is None:
            answerer = asked_endpoint(settings, how, asked, part)
        else:
            renderer = Renderer(lmm.processor)
            answerer = Answerer(lmm, renderer, how, settings.images, settings.seed, asked, p_yes)
        with bars() as progress:
            found = run_benchmarks(
                asked, answerer, part, model=model, settings=wanted, chunk=answerer.size,
                partial=score_partial, progress=progress,
            )["benchmarks"]  # fmt: skip
        for benchmark in asked if p_yes is not None else ():
            if isinstance(benchmark, YesNo) and benchmark.yes_no:
                found[benchmark.name]["next_token"] = ranked(benchmark, of_benchmark(p_yes, benchmark.name))
        suffix = "" if temperature == main else f"@{temperature:g}"
        answers |= {name + suffix: figures for name, figures in found.items()}
    return answers


@contextlib.contextmanager
def bars() -> Iterator[Progress]:
    """One bar after the other, a benchmark each, on a terminal."""
    shown: dict[str, tqdm[Any]] = {}

    def show(benchmark: str, done: int, total: int) -> None:
        if benchmark not in shown:
            close()
            shown[benchmark] = track(range(total), benchmark)
        shown[benchmark].n = done
        shown[benchmark].refresh()

    def close() -> None:
        for bar in shown.values():
            bar.close()

    try:
        yield show
    finally:
        close()


def asked_endpoint(
    settings: EvalSettings, how: GenerateSettings, benchmarks: Sequence[Benchmark], folder: Path
) -> EndpointAnswerer:
    """The endpoint's answers; what asking for those that ``folder`` lacks may cost is said first."""
    assert settings.endpoint is not None
    answerer = EndpointAnswerer(
        endpoint_of(
            settings.endpoint, max_tokens=how.max_new_tokens, temperature=how.temperature, top_p=how.top_p
        ),
        settings.images,
    )
    known = {(row.get("benchmark"), row.get("id")) for row in Journal(folder / "responses.jsonl").rows}
    answerer.announce([i for b in benchmarks for i in b.items if (b.name, i.id) not in known])
    return answerer
