"""``align eval``: a model on POPE, MMHal-style questions and free descriptions, by the shared runner."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
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
from data.formats.mmhal import write as write_mmhal
from data.images import check_image
from data.jsonl import DataError, read_records, write_json
from data.schema import Message, Prompt, Response
from data.world.annotators import rate
from data.world.build import read_scenes
from data.world.language import mentioned, question_kind
from data.world.scene import Scene
from evals.journal import Journal
from evals.judges import FunctionJudge, Judge, JudgeRequest, read_recorded
from evals.metrics import interval_from
from evals.mmhal import MmhalBenchmark, read_benchmark
from evals.objects import ObjectBenchmark
from evals.pope import PopeBenchmark, read_split
from evals.report import Cell, Page, Table, Text, write_report
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
        results = {"model": model, "benchmarks": measure(settings, benchmarks, run_dir.path, model)}
        hand_out(benchmarks, run_dir.path, settings.generate.temperature)
        write_json(run_dir.path / "results.json", results)
        write_report(run_dir.path / "report.html", page_of(results))
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


# --- benchmarks ---


def benchmarks_of(settings: EvalSettings, scenes: Mapping[str, Scene]) -> list[Benchmark]:
    """The benchmarks that the settings name. DataError where a judge or the truth is missing."""
    found: list[Benchmark] = []
    boot: dict[str, Any] = {"n_boot": settings.bootstrap, "seed": settings.seed}
    pope = {k.removeprefix("pope_"): v for k, v in settings.benchmarks.items() if k.startswith("pope_")}
    if pope:
        splits = tuple(read_split(path, name, limit=settings.limit) for name, path in pope.items())
        found.append(PopeBenchmark(splits, prefix=settings.pope_prefix, **boot))
    if path := settings.benchmarks.get("mmhal"):
        judge = judge_of(settings, scenes)
        found.append(read_benchmark(path, judge, limit=settings.limit, images=settings.images, **boot))
    if path := settings.benchmarks.get("describe"):
        if not scenes:
            mend = "set world=FOLDER (the built-in world), or leave describe out"
            raise DataError("the objects in the pictures are not known", key="benchmarks.describe", mend=mend)
        items = describe_items(path, settings.limit)
        truth = {i.image.id: scenes[i.image.id].objects for i in items if i.image.id in scenes}
        found.append(ObjectBenchmark(items, truth, mentioned, name="describe", **boot))
    return found


def check_pictures(settings: EvalSettings, benchmarks: Sequence[Benchmark]) -> None:
    """Raise DataError for the first picture that cannot be had, with the file and the item that name it.

    Ahead of the model: found when its item is reached, it would cost the hours of the items before.
    """
    seen: set[str] = set()
    for benchmark in benchmarks:
        for item in benchmark.items:
            if item.image.path in seen:
                continue
            try:
                check_image(item.image, settings.images)
            except DataError as error:
                mend = error.mend
                if item.image.url is not None and settings.images is None:
                    mend = "download the pictures into one folder and set images to it"
                file = file_of(settings, benchmark, item)
                raise DataError(error.rule, file=file, key=f"item {item.id!r}", mend=mend) from error
            if item.image.path is not None:
                seen.add(item.image.path)


def file_of(settings: EvalSettings, benchmark: Benchmark, item: EvalItem) -> str:
    """The file that an item comes from."""
    files = {str(name): path for name, path in settings.benchmarks.items()}
    return files[f"pope_{item.id.split('/')[0]}" if isinstance(benchmark, PopeBenchmark) else benchmark.name]


def describe_items(path: str, limit: int | None) -> tuple[EvalItem, ...]:
    """The prompts of a file as items. DataError for a bad line (none is left out) or one without an image."""
    items = []
    for record in read_records(path, "prompt", limit=limit, strict=True):
        if not isinstance(record, Prompt) or record.image is None:
            mend = "give it one, or take it out"
            raise DataError(f"prompt {record.id!r} has no image", file=path, key="image", mend=mend)
        items.append(EvalItem(record.id, record.image, record.question))
    return tuple(items)


def judge_of(settings: EvalSettings, scenes: Mapping[str, Scene]) -> Judge | None:
    """The world's oracle where the scenes are known, else recorded verdicts, else nobody."""
    if scenes:
        return FunctionJudge("world-oracle", lambda request: oracle(scenes, request))
    if settings.verdicts:
        return read_recorded(settings.verdicts)
    return None


def oracle(scenes: Mapping[str, Scene], request: JudgeRequest) -> str:
    """The oracle's verdict in a judge's words: its reason, ``Rating: n``. DataError: an unknown image."""
    scene = scenes.get(request.image)
    if scene is None:
        mend = "set world=FOLDER to the folder that the questions came with"
        raise DataError(f"the image {request.image!r} is not a scene of this world", key="world", mend=mend)
    kind, about = question_kind(request.question)
    rating, reason = rate(scene, kind, about, request.reference, request.response)
    return f"{reason}. Rating: {rating}"


# --- the page ---


def page_of(results: Mapping[str, Any]) -> Page:
    """A table for each benchmark: every figure that has an interval, and where they come from."""
    sections = [section_of(name, found) for name, found in results["benchmarks"].items()]
    return Page("Evaluation", sections, results["model"], footer="Intervals: 95 % bootstrap over images.")


def section_of(name: str, found: Mapping[str, Any]) -> Table | Text:
    """One benchmark's figures with their provenance; words where there are none for want of a judge."""
    if "judge" in found and found["judge"] is None:
        told = (
            "The questions were answered, and the answers were not rated: no judge was given. Rate "
            "mmhal_responses.json, then evaluate with verdicts=FILE."
        )
        return Text(f"{told}\n\n{provenance(found)}", title=name)
    rows: list[list[Cell]] = [
        [label, interval_from(figure), figure["n"]] for label, figure in intervals(found)
    ]
    return Table(name, ["figure", "value", "n"], rows, provenance(found))


def provenance(found: Mapping[str, Any]) -> str:
    """Of which questions a benchmark's figures are, and what nobody could read: for the table's note."""
    if "splits" in found:
        splits = (
            f"{name}: n = {split['n']} on {split['images']} images, "
            f"{split['strict']['counts']['unparsed']} unparsed (strict rule), file sha256 {split['sha256']}"
            for name, split in found["splits"].items()
        )
        return f"{'; '.join(splits)}."
    if "judge" not in found:
        return f"n = {found['n']}; questions and truth sha256 {found['sha256']}."
    asked = f"n = {found['n']}; file sha256 {found['sha256']}."
    if found["judge"] is None:
        return asked
    prompt, unrated = found["prompt"], len(found["unrated"])
    judged = f"Judge: {found['judge']}; prompt (for a judge that reads one): {prompt['name']}, sha256 "
    return f"{asked} {judged}{prompt['sha256']}. Unrated, counted as 0: {unrated}."


def intervals(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every figure with an interval inside nested results, with its path as a label."""
    for key, value in found.items():
        if isinstance(value, dict):
            label = f"{prefix}{key}".replace("_", " ")
            if {"value", "low", "high", "n"} <= value.keys():
                yield label, value
            else:
                yield from intervals(value, f"{prefix}{key}, ")
