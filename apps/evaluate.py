"""``align eval``: a model, here or behind an endpoint, on the benchmarks, by the shared runner."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from align.checkpoint import RunDir
from align.checkpoint import progress as track
from align.config import EvalSettings, GenerateSettings
from align.generate import Item, generate
from align.models.lmm import Lmm, check_model
from align.models.lmm import load as load_lmm
from align.pictures import PictureKey, encode_pictures, open_picture, picture_key
from align.render import ImageInput, Renderer
from align.schedule import step_seed
from align.yes_no import probabilities
from apps.benchmarks import benchmarks_of, check_pictures, endpoint_of
from apps.eval_gallery import galleries, shown_of
from apps.eval_page import page_of
from apps.eval_runs import read_run
from data.formats.mmhal import write as write_mmhal
from data.jsonl import DataError, write_json
from data.schema import Message, Response
from data.world.build import read_scenes
from evals.answers import score_partial
from evals.endpoint import EndpointAnswerer
from evals.journal import Journal
from evals.mmhal import MmhalBenchmark
from evals.objects import ObjectBenchmark
from evals.report import write_report
from evals.runner import Benchmark, EvalItem, Progress, YesNo, ranked
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


def of_benchmark(journal: Journal | None, name: str) -> dict[str, float]:
    """P(yes) of a benchmark's questions by id."""
    rows = journal.rows if journal is not None else []
    return {row["id"]: row["p_yes"] for row in rows if row["benchmark"] == name}


@dataclass(frozen=True)
class Chunk:
    """Items that are answered together."""

    items: list[EvalItem]
    #: the benchmark, where the first token's probabilities answer them
    by_token: str | None = None


class Answerer:
    """A ``generate`` callable for the runner.

    A sampled answer depends on the batch in which it is drawn. So the benchmarks' items are cut into fixed
    chunks, each with a seed of its own, and a chunk is always answered as a whole: a resumed run gives the
    answers of an unbroken one, wherever it was cut (with the same readable pictures). Each picture of a chunk
    is opened and encoded once.

    With ``p_yes`` yes/no answers are not generated: P(yes) goes there, and the likelier is the answer.
    """

    def __init__(
        self,
        lmm: Lmm,
        renderer: Renderer,
        how: GenerateSettings,
        images: str | None,
        seed: int,
        benchmarks: Sequence[Benchmark],
        p_yes: Journal | None = None,
    ) -> None:
        self.lmm, self.renderer, self.how, self.images, self.seed = lmm, renderer, how, images, seed
        self.p_yes = p_yes
        #: items of a chunk
        self.size = how.batch_size * 4
        self._chunks: list[Chunk] = []
        #: (id, question) -> its chunk
        self._place: dict[tuple[str, str], int] = {}
        for benchmark in benchmarks:
            for items, by_token in self._parts(benchmark):
                for start in range(0, len(items), self.size):
                    chunk = Chunk(items[start : start + self.size], by_token)
                    self._place |= {(item.id, item.question): len(self._chunks) for item in chunk.items}
                    self._chunks.append(chunk)
        #: the chunk answered last
        self._last: tuple[int, dict[str, str]] = (-1, {})

    def opened(self, items: Sequence[EvalItem]) -> dict[PictureKey, ImageInput]:
        """Each picture once; None for one that cannot be read, with a warning for each item that shows it."""
        found: dict[PictureKey, ImageInput] = {}
        why: dict[PictureKey, DataError] = {}
        for item in items:
            key = picture_key(item.image)
            if key not in found:
                try:
                    found[key] = open_picture(item.image, self.images, item.id)
                except DataError as error:
                    found[key], why[key] = None, error
            if key in why:
                log.warning("no answer to %s: %s", item.id, why[key])
        return found

    def _parts(self, benchmark: Benchmark) -> list[tuple[list[EvalItem], str | None]]:
        items = benchmark.items
        if self.p_yes is None or not isinstance(benchmark, YesNo):
            return [(items, None)]
        ids = {name for group in benchmark.yes_no.values() for name, _, _ in group}
        asked = [item for item in items if item.id in ids]
        return [([item for item in items if item.id not in ids], None), (asked, benchmark.name)]

    def __call__(self, items: list[EvalItem]) -> dict[str, str]:
        answers = {}
        for item in items:
            place = self._place[item.id, item.question]
            if place != self._last[0]:
                self._last = place, self.answer(self._chunks[place])
            if item.id in self._last[1]:
                answers[item.id] = self._last[1][item.id]
        return answers

    def answer(self, chunk: Chunk) -> dict[str, str]:
        """Responses to one whole chunk by id; none where the picture cannot be read, which is told."""
        opened = self.opened(chunk.items)
        items = [item for item in chunk.items if opened[picture_key(item.image)] is not None]
        if not items:
            return {}
        pictures = [opened[picture_key(item.image)] for item in items]
        encoded = encode_pictures(self.lmm, self.renderer, pictures)
        asked: list[Item] = [
            ([Message(role="user", content=item.question)], image) for item, image in zip(items, encoded)
        ]
        if chunk.by_token is not None and self.p_yes is not None:
            found = probabilities(self.lmm, self.renderer, asked, self.how.batch_size)
            # after a kill some may stand there already
            known = of_benchmark(self.p_yes, chunk.by_token)
            rows = ({"benchmark": chunk.by_token, "id": i.id, "p_yes": p} for i, p in zip(items, found))
            self.p_yes.add(row for row in rows if row["id"] not in known)
            return {i.id: "Yes" if p > 0.5 else "No" for i, p in zip(items, found)}
        seed = step_seed(self.seed, "eval", chunk.items[0].id)
        answers = generate(self.lmm, self.renderer, asked, self.how, seed=seed)
        return {i.id: a.text for i, a in zip(items, answers, strict=True) if isinstance(a, Response)}
