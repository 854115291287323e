"""``align eval``: a model on POPE, MMHal-style questions and free descriptions, by the shared runner."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from align.checkpoint import RunDir
from align.config import EvalSettings, GenerateSettings
from align.generate import Item, generate
from align.models.lmm import Lmm, check_model
from align.models.lmm import load as load_lmm
from align.pictures import encode_pictures, open_pictures
from align.render import Renderer
from align.schedule import step_seed
from apps.benchmarks import benchmarks_of, check_pictures
from apps.eval_gallery import galleries
from apps.eval_page import page_of
from apps.eval_runs import read_run
from data.formats.mmhal import write as write_mmhal
from data.jsonl import write_json
from data.schema import Message, Response
from data.world.build import read_scenes
from evals.journal import Journal
from evals.mmhal import MmhalBenchmark
from evals.objects import ObjectBenchmark
from evals.report import write_report
from evals.runner import Benchmark, EvalItem
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
    check_model(settings.model)
    if settings.dry_run:
        return Path(settings.output)
    with RunDir.create(settings.output, settings, "eval") as run_dir:
        if run_dir.is_done:
            return run_dir.path
        model = settings.model.name
        found = measure(settings, benchmarks, run_dir.path, model)
        hand_out(benchmarks, run_dir.path, settings.generate.temperature)
        write_json(run_dir.path / "results.json", {"model": model, "benchmarks": found})
        shown = galleries([read_run(run_dir.path)])
        write_report(run_dir.path / "report.html", page_of({model: found}, shown))
        run_dir.done()
    return run_dir.path


def hand_out(benchmarks: Sequence[Benchmark], folder: Path, temperature: float) -> None:
    """``mmhal_responses.json``: the answers to MMHal's questions in its own layout, for judges elsewhere."""
    for benchmark in benchmarks:
        if isinstance(benchmark, MmhalBenchmark):
            rows = Journal(folder / f"t{temperature:g}" / "responses.jsonl").rows
            said = {row["id"]: row["response"] for row in rows if row["benchmark"] == benchmark.name}
            path = folder / "mmhal_responses.json"
            write_mmhal(path, benchmark.answered(said))
            if benchmark.judge is None:
                log.warning("MMHal's answers are not rated: rate %s, then evaluate with verdicts=FILE", path)


def measure(
    settings: EvalSettings, benchmarks: Sequence[Benchmark], folder: Path, model: str
) -> dict[str, Any]:
    """Figures by benchmark; "describe@0.7" are the descriptions of a further temperature."""
    lmm = load_lmm(settings.model)
    renderer = Renderer(lmm.processor)
    main = settings.generate.temperature
    results: dict[str, Any] = {}
    for temperature in dict.fromkeys([main, *settings.describe_temperatures]):
        how = settings.generate.model_copy(update={"temperature": temperature})
        asked = [b for b in benchmarks if temperature == main or isinstance(b, ObjectBenchmark)]
        size = how.batch_size * 4
        found = run_benchmarks(
            asked,
            Answerer(lmm, renderer, how, settings.images, settings.seed, asked, size),
            folder / f"t{temperature:g}",
            model=model,
            settings={"generate": how.model_dump(), "seed": settings.seed},
            chunk=size,
        )
        suffix = "" if temperature == main else f"@{temperature:g}"
        results |= {name + suffix: figures for name, figures in found["benchmarks"].items()}
    return results


class Answerer:
    """A ``generate`` callable for the runner.

    A sampled answer depends on the batch in which it is drawn. So the benchmarks' items are cut into fixed
    chunks, each with a seed of its own, and a chunk is always answered as a whole: a resumed run gives the
    answers of an unbroken one, wherever it was cut. Each picture of a chunk is opened and encoded once.
    """

    def __init__(
        self,
        lmm: Lmm,
        renderer: Renderer,
        how: GenerateSettings,
        images: str | None,
        seed: int,
        benchmarks: Sequence[Benchmark],
        size: int,
    ) -> None:
        self.lmm, self.renderer, self.how, self.images, self.seed = lmm, renderer, how, images, seed
        self._chunks: list[list[EvalItem]] = []
        #: (id, question) -> its chunk
        self._place: dict[tuple[str, str], int] = {}
        for benchmark in benchmarks:
            items = benchmark.items
            for start in range(0, len(items), size):
                chunk = items[start : start + size]
                self._place |= {(item.id, item.question): len(self._chunks) for item in chunk}
                self._chunks.append(chunk)
        #: the chunk answered last
        self._last: tuple[int, dict[str, str]] = (-1, {})

    def __call__(self, items: list[EvalItem]) -> dict[str, str]:
        answers = {}
        for item in items:
            place = self._place[item.id, item.question]
            if place != self._last[0]:
                self._last = place, self.answer(self._chunks[place])
            answers[item.id] = self._last[1][item.id]
        return answers

    def answer(self, chunk: list[EvalItem]) -> dict[str, str]:
        """Responses to one whole chunk by id."""
        pictures = open_pictures([item.image for item in chunk], self.images, [item.id for item in chunk])
        encoded = encode_pictures(self.lmm, self.renderer, pictures)
        asked: list[Item] = [
            ([Message(role="user", content=item.question)], image) for item, image in zip(chunk, encoded)
        ]
        seed = step_seed(self.seed, "eval", chunk[0].id)
        answers = generate(self.lmm, self.renderer, asked, self.how, seed=seed)
        return {i.id: a.text for i, a in zip(chunk, answers, strict=True) if isinstance(a, Response)}
