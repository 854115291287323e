"""``align eval``: a model on POPE, MMHal-style questions and free descriptions, by the shared runner."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.checkpoint import RunDir
from align.config import EvalSettings, GenerateSettings
from align.generate import Item, generate, grid_features
from align.models.lmm import Lmm, is_llava
from align.models.lmm import load as load_lmm
from align.render import Renderer
from data.images import open_image
from data.jsonl import DataError, read_records, write_json
from data.schema import Message, Prompt
from data.world.annotators import rate
from data.world.build import read_scenes
from data.world.language import mentioned
from data.world.scene import Scene
from evals.judges import FunctionJudge, Judge, JudgeRequest, read_recorded
from evals.mmhal import read_benchmark
from evals.objects import ObjectBenchmark
from evals.pope import PopeBenchmark, read_split
from evals.runner import Benchmark, EvalItem, Generate
from evals.runner import run as run_benchmarks


def run(settings: EvalSettings) -> Path:
    """Write responses, verdicts and ``results.json`` under ``<output>``; answered items are not asked again."""
    scenes = read_scenes(Path(settings.world)) if settings.world else {}
    greedy = benchmarks_of(settings, scenes)
    sampled = [b for b in greedy if isinstance(b, ObjectBenchmark)]
    if settings.dry_run:
        return Path(settings.output)
    with RunDir.create(settings.output, settings, "eval") as run_dir:
        lmm = load_lmm(settings.model)
        renderer = Renderer(lmm.processor)
        model = settings.model.adapter or settings.model.path
        results: dict[str, Any] = {}
        for temperature in dict.fromkeys([settings.generate.temperature, *settings.describe_temperatures]):
            first = temperature == settings.generate.temperature
            how = settings.generate.model_copy(update={"temperature": temperature})
            found = run_benchmarks(
                greedy if first else sampled,
                answerer(lmm, renderer, how, settings.images, settings.seed),
                run_dir.path / f"t{temperature:g}",
                model=model,
                settings={"generate": how.model_dump(), "seed": settings.seed},
                chunk=how.batch_size * 4,
            )
            suffix = "" if first else f"@{temperature:g}"
            results |= {name + suffix: figures for name, figures in found["benchmarks"].items()}
        write_json(run_dir.path / "results.json", {"model": model, "benchmarks": results})
        run_dir.done()
    return run_dir.path


def answerer(lmm: Lmm, renderer: Renderer, how: GenerateSettings, images: str | None, seed: int) -> Generate:
    """A ``generate`` callable for the runner. Each picture of a call is opened and encoded once."""

    def answer(items: list[EvalItem]) -> dict[str, str]:
        names = list(dict.fromkeys(item.image.id for item in items))
        by_id = {item.image.id: item.image for item in items}
        pictures: Sequence[Any] = [open_image(by_id[name], images) for name in names]
        if is_llava(lmm.model):
            pictures = grid_features(lmm, renderer, pictures)
        seen = dict(zip(names, pictures, strict=True))
        asked: list[Item] = [([Message(role="user", content=i.question)], seen[i.image.id]) for i in items]
        # a seed of its own for each call, so that a resumed run draws the same answers
        draw = seed + zlib.crc32(items[0].id.encode())
        answers = generate(lmm, renderer, asked, how, seed=draw)
        return {i.id: a.text for i, a in zip(items, answers, strict=True) if not isinstance(a, list)}

    return answer


def benchmarks_of(settings: EvalSettings, scenes: dict[str, Scene]) -> list[Benchmark]:
    """The benchmarks that the settings name. DataError where a judge or the truth is missing."""
    found: list[Benchmark] = []
    boot: dict[str, Any] = {"n_boot": settings.bootstrap, "seed": settings.seed}
    pope = {k.removeprefix("pope_"): v for k, v in settings.benchmarks.items() if k.startswith("pope_")}
    if pope:
        splits = tuple(read_split(path, name, limit=settings.limit) for name, path in pope.items())
        found.append(PopeBenchmark(splits, prefix=settings.pope_prefix, **boot))
    if path := settings.benchmarks.get("mmhal"):
        found.append(read_benchmark(path, judge_of(settings, scenes), limit=settings.limit, **boot))
    if path := settings.benchmarks.get("describe"):
        if not scenes:
            mend = "set world=FOLDER (the built-in world), or leave describe out"
            raise DataError("the objects in the pictures are not known", key="benchmarks.describe", mend=mend)
        prompts = [p for p in read_records(path, "prompt", limit=settings.limit) if isinstance(p, Prompt) and p.image]
        items = tuple(EvalItem(p.id, p.image, p.question) for p in prompts if p.image)
        truth = {i.image.id: scenes[i.image.id].objects for i in items}
        found.append(ObjectBenchmark(items, truth, mentioned, name="describe", **boot))
    return found


def judge_of(settings: EvalSettings, scenes: dict[str, Scene]) -> Judge:
    """The world's oracle where the scenes are known, else recorded verdicts."""
    if scenes:
        return FunctionJudge("world-oracle", lambda request: oracle(scenes[request.image], request))
    if settings.verdicts:
        return read_recorded(settings.verdicts)
    mend = "set world=FOLDER, or verdicts=FILE with recorded ones"
    raise DataError("no judge for MMHal-style questions", key="benchmarks.mmhal", mend=mend)


def oracle(scene: Scene, request: JudgeRequest) -> str:
    """The oracle's verdict in a judge's words: its reason, then ``Rating: n``."""
    from data.world.language import question_kind

    kind, about = question_kind(request.question)
    rating, reason = rate(scene, kind, about, request.reference, request.response)
    return f"{reason}. Rating: {rating}"
