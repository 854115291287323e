"""The benchmarks that settings name, with their truth and judges: for models and for files of answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config import BenchmarkSettings, EndpointSettings, JudgeSettings
from data.images import check_image
from data.jsonl import DataError, read_records, read_text
from data.schema import Prompt
from data.world.annotators import rate
from data.world.language import mentioned, question_kind
from data.world.scene import Scene
from evals import amber, chair, llava_bench, mmbench
from evals.amber import AmberBenchmark
from evals.judges import CachedJudge, FunctionJudge, Judge, JudgeRequest, read_recorded
from evals.llava_bench import LlavaBenchBenchmark
from evals.mmbench import MmbenchBenchmark
from evals.mmhal import read_benchmark, read_prompt
from evals.objects import ObjectBenchmark
from evals.pope import PopeBenchmark, read_split
from evals.runner import Benchmark, EvalItem

if TYPE_CHECKING:
    from evals.endpoint import Endpoint

log = logging.getLogger(__name__)


def benchmarks_of(
    settings: BenchmarkSettings, scenes: Mapping[str, Scene], *, judged: bool = True
) -> list[Benchmark]:
    """The benchmarks that the settings name, with one judge for all of them, or not ``judged``.

    Raises:
        DataError: a file of a benchmark, its truth or its judge is missing or unreadable.
    """
    found: list[Benchmark] = []
    judge = judge_of(settings) if judged else None
    boot: dict[str, Any] = {"n_boot": settings.bootstrap, "seed": settings.seed}
    pope = {k.removeprefix("pope_"): v for k, v in settings.benchmarks.items() if k.startswith("pope_")}
    if pope:
        splits = tuple(read_split(path, name, limit=settings.limit) for name, path in pope.items())
        found.append(PopeBenchmark(splits, prefix=settings.pope_prefix, **boot))
    if path := settings.benchmarks.get("mmhal"):
        more: dict[str, Any] = {"limit": settings.limit, "images": settings.images, **boot}
        if settings.judge is not None:
            more["repeats"] = settings.judge.repeats
        if settings.judge_prompt is not None:
            more["prompt"] = read_prompt(settings.judge_prompt)
        found.append(read_benchmark(path, judge or (oracle(scenes) if judged else None), **more))
    elif settings.judge_prompt is not None:
        raise DataError("only MMHal's judge takes a prompt", key="judge_prompt", mend="leave it out")
    if path := settings.benchmarks.get("describe"):
        if not scenes:
            mend = "set world=FOLDER (the built-in world), or leave describe out"
            raise DataError("the objects in the pictures are not known", key="benchmarks.describe", mend=mend)
        items = describe_items(path, settings.limit)
        truth = {i.image.id: scenes[i.image.id].objects for i in items if i.image.id in scenes}
        found.append(ObjectBenchmark(items, truth, mentioned, name="describe", **boot))
    if path := settings.benchmarks.get("chair"):
        found.append(chair_of(settings, path, **boot))
    if path := settings.benchmarks.get("amber"):
        found.append(amber_of(settings, path, **boot))
    if path := settings.benchmarks.get("llava_bench"):
        files = [first_of(path, names, "benchmarks.llava_bench") for names in LLAVA_BENCH_FILES]
        questions = llava_bench.read_questions(*files, limit=settings.limit)
        repeats = settings.judge.repeats if settings.judge is not None else 1
        found.append(LlavaBenchBenchmark(questions, judge, repeats, **boot))
    if path := settings.benchmarks.get("mmbench"):
        found.append(MmbenchBenchmark(mmbench.read_questions(path, limit=settings.limit), **boot))
    return found


#: LLaVA-Bench's questions, reference answers and contexts: of COCO's 80 images, or in the wild
LLAVA_BENCH_FILES = (
    ("qa90_questions.jsonl", "questions.jsonl"),
    ("qa90_gpt4_answer.jsonl", "answers_gpt4.jsonl"),
    ("caps_boxes_coco2014_val_80.jsonl", "context.jsonl"),
)


def first_of(folder: str, names: Sequence[str], key: str) -> Path:
    """The file of a folder that has one of these names. DataError where none has."""
    for name in names:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    mend = "give the folder with the benchmark's own files"
    raise DataError(f"no {' or '.join(names)} in it", file=folder, key=key, mend=mend)


def amber_of(settings: BenchmarkSettings, folder: str, **boot: Any) -> AmberBenchmark:
    """AMBER from its folder: both kinds of questions, or the kind whose file is there."""
    key = "benchmarks.amber"
    annotations, relation, safe = (
        first_of(folder, (name,), key) for name in ("annotations.json", "relation.json", "safe_words.txt")
    )
    queries = [
        path
        for kind in ("generative", "discriminative")
        for place in ("", "query")
        if (path := Path(folder) / place / f"query_{kind}.json").is_file()
    ]
    if not queries:
        first_of(folder, ("query_generative.json", "query_discriminative.json"), key)
    how = {"nouns": settings.amber_nouns, "limit": settings.limit, **boot}
    return amber.read_benchmark(queries, annotations, relation, safe, **how)


def chair_of(settings: BenchmarkSettings, path: str, **boot: Any) -> ObjectBenchmark:
    """CHAIR from COCO's annotations (JSON), or from lines with captions and boxes (JSONL)."""
    files = settings.chair
    words = chair.read_vocabulary(files.synonyms) if files.synonyms else chair.built_in()
    lines = Path(path).suffix == ".jsonl"
    truth = chair.boxes_truth(path, words) if lines else chair.coco_truth(path, files.captions, words)
    ids = read_ids(files.images) if files.images else list(truth)
    return chair.benchmark_of(truth, words, ids[: settings.limit], **boot)


def read_ids(path: str) -> list[str]:
    """One id a line, blank lines left out."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def check_pictures(settings: BenchmarkSettings, benchmarks: Sequence[Benchmark]) -> None:
    """Look at every picture ahead of the model. Some that cannot be had are told of in a warning.

    Their items will have no answer, and are counted as missing.

    Raises:
        DataError: a benchmark has not one picture; with the file and the item of the first.
    """
    for benchmark in benchmarks:
        checked: dict[str | None, DataError | None] = {}
        first: DataError | None = None
        for item in benchmark.items:
            place = item.image.path or item.image.url or item.image.id
            if place not in checked:
                checked[place] = checked_picture(settings, benchmark, item)
                first = first or checked[place]
        lost = sum(error is not None for error in checked.values())
        if first is not None and lost == len(checked):
            raise first
        if first is not None:
            told = "%s: %d of %d pictures cannot be read, their questions will have no answer (%s)"
            log.warning(told, benchmark.name, lost, len(checked), first)


def checked_picture(settings: BenchmarkSettings, benchmark: Benchmark, item: EvalItem) -> DataError | None:
    """What is wrong with an item's picture, with the file and the item that name it."""
    try:
        check_image(item.image, settings.images)
    except DataError as error:
        mend = error.mend
        if item.image.url is not None and settings.images is None:
            mend = "download the pictures into one folder and set images to it"
        file = file_of(settings, benchmark, item)
        return DataError(error.rule, file=file, key=f"item {item.id!r}", mend=mend)
    return None


def file_of(settings: BenchmarkSettings, benchmark: Benchmark, item: EvalItem) -> str:
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


def judge_of(settings: BenchmarkSettings) -> Judge | None:
    """Recorded verdicts if there are any, else the judge named, else nobody.

    What a judge said is kept by content, so that no answer is paid for twice.
    """
    if settings.verdicts:
        return read_recorded(settings.verdicts)
    if settings.judge is not None:
        cache = settings.judge.cache or Path(settings.output) / "verdict_cache.jsonl"
        judge, chunk = asked_judge(settings.judge)
        return CachedJudge(judge, cache, chunk=chunk)
    return None


def oracle(scenes: Mapping[str, Scene]) -> Judge | None:
    """The built-in world's, who knows every scene; nobody without scenes."""
    return FunctionJudge("world-oracle", lambda request: oracle_says(scenes, request)) if scenes else None


def asked_judge(settings: JudgeSettings) -> tuple[Judge, int]:
    """The judge that the settings name, and how many requests are worth giving it at once."""
    if settings.local is not None:
        # imported here: scoring needs no torch but for this
        from apps.local_judge import LocalJudge

        judge = LocalJudge(settings.local, settings.max_tokens, settings.temperature, settings.batch_size)
        return judge, 4 * settings.batch_size
    # imported here: nobody else needs a client for the web
    from evals.endpoint import EndpointJudge

    assert settings.endpoint is not None
    how: dict[str, Any] = {"max_tokens": settings.max_tokens, "temperature": settings.temperature}
    how["whole"] = True
    return EndpointJudge(endpoint_of(settings.endpoint, **how)), 4 * settings.endpoint.workers


def endpoint_of(settings: EndpointSettings, **more: Any) -> Endpoint:
    """The endpoint that the settings name; ``more`` as ``Endpoint`` takes it."""
    from evals.endpoint import Endpoint, Price

    how = settings.model_dump(exclude={"price_input", "price_output"})
    price = Price(settings.price_input, settings.price_output)
    return Endpoint(**how, price=price, **more)


def oracle_says(scenes: Mapping[str, Scene], request: JudgeRequest) -> str:
    """The oracle's verdict in a judge's words: its reason, below it the rating. DataError: unknown image."""
    scene = scenes.get(request.image)
    if scene is None:
        mend = "set world=FOLDER to the folder that the questions came with"
        raise DataError(f"the image {request.image!r} is not a scene of this world", key="world", mend=mend)
    kind, about = question_kind(request.question)
    rating, reason = rate(scene, kind, about, request.reference, request.response)
    return f"{reason}.\nRating: {rating}"
