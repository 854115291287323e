"""Run benchmarks with any ``generate`` callable: resumable item by item, joined by id, never by position.

In the output folder: ``responses.jsonl`` (appended as answers come; a second run asks only for what is
missing), ``verdicts.jsonl`` (what parser or judge said of each response) and ``results.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from data.jsonl import DataError, write_json, write_records
from data.schema import Image, Verdict
from evals import metrics
from evals.journal import Journal, content_hash


@dataclass(frozen=True)
class EvalItem:
    """One question about one image, as a benchmark puts it to a model."""

    id: str
    image: Image
    question: str


#: answers a list of items: id -> text, exactly one entry for each item given
Generate = Callable[[list[EvalItem]], dict[str, str]]
#: called with (benchmark, answered so far, of how many)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Scored:
    """A benchmark's figures (JSON values) and the verdict on each response behind them."""

    result: dict[str, Any]
    verdicts: list[Verdict]


class Benchmark(Protocol):
    """What the runner needs of a benchmark."""

    @property
    def name(self) -> str: ...

    @property
    def items(self) -> list[EvalItem]: ...

    def score(self, responses: Mapping[str, str]) -> Scored:
        """Figures for one response to every item, by id."""
        ...

    def only(self, ids: Container[str]) -> Benchmark:
        """The same with these items alone, under the whole one's name and hash."""
        ...


@runtime_checkable
class YesNo(Protocol):
    """A benchmark (or a part of one) whose questions want a yes or a no."""

    @property
    def yes_no(self) -> dict[str, list[tuple[str, str, str]]]:
        """Group -> (id, image, right answer "yes" or "no")."""
        ...

    @property
    def n_boot(self) -> int: ...

    @property
    def seed(self) -> int: ...


def ranked(benchmark: YesNo, p_yes: Mapping[str, float]) -> dict[str, Any]:
    """AUROC of P(yes) in each group of questions, images resampled; it needs no threshold.

    Over the questions that have a P(yes): the interval's n says how many.
    """
    found: dict[str, Any] = {}
    for group, every in benchmark.yes_no.items():
        asked = [(p_yes[name], image, label) for name, image, label in every if name in p_yes]
        if asked:
            scores, images, labels = zip(*asked, strict=True)
            options: dict[str, Any] = {"n_boot": benchmark.n_boot, "seed": benchmark.seed}
            area = metrics.auroc(scores, [label == "yes" for label in labels], clusters=images, **options)
            found[group] = {"auroc": area.as_dict()}
    return found


def check_ids(what: str, wanted: Iterable[str], given: Iterable[str]) -> None:
    """Raise DataError unless both hold the same ids; names some of those that are missing or too many."""
    want, got = set(wanted), set(given)
    for ids, word, mend in (
        (want - got, "missing", "give one response to each item"),
        (got - want, "unknown", "remove them, or give the items that they answer"),
    ):
        if ids:
            some = ", ".join(repr(i) for i in sorted(ids)[:5])
            more = ", ..." if len(ids) > 5 else ""
            raise DataError(f"{len(ids)} ids are {word} ({some}{more})", key=what, mend=mend)


def _unique(benchmark: str, items: Sequence[EvalItem]) -> dict[str, EvalItem]:
    found: dict[str, EvalItem] = {}
    for item in items:
        if item.id in found:
            rule = f"two items have the id {item.id!r}"
            raise DataError(rule, key=benchmark, mend="give each item its own id")
        found[item.id] = item
    return found


def _kept(
    journal: Journal, benchmark: str, items: Mapping[str, EvalItem], run: dict[str, str]
) -> dict[str, str]:
    """Responses of an earlier run to these very items; DataError where they answer something else."""
    kept: dict[str, str] = {}
    for number, row in enumerate(journal.rows, start=1):
        if row.get("benchmark") != benchmark or row.get("id") not in items:
            continue
        item = items[row["id"]]
        now = {**run, "image": item.image.id, "question": item.question}
        for key, value in now.items():
            if row.get(key) != value:
                rule = f"an earlier run has {row.get(key)!r} for {item.id!r}, this one {value!r}"
                mend = "choose another output folder, or delete this file to answer everything again"
                raise DataError(rule, file=str(journal.path), line=number, key=key, mend=mend)
        kept[item.id] = row["response"]
    return kept


def row_of(benchmark: str, item: EvalItem, response: str) -> dict[str, str]:
    """One line of ``responses.jsonl``."""
    question = {"image": item.image.id, "question": item.question}
    return {"benchmark": benchmark, "id": item.id, **question, "response": response}


def answer(
    benchmark: str,
    items: Sequence[EvalItem],
    generate: Generate,
    journal: Journal,
    *,
    run: dict[str, str],
    chunk: int = 64,
    progress: Progress | None = None,
    may_miss: bool = False,
) -> dict[str, str]:
    """Responses to all items by id; asks ``generate`` only for those that the journal lacks.

    ``run`` names the model and its settings; rows of another run are refused. Raises DataError when
    ``generate`` leaves an item out (unless it ``may_miss`` some), adds one, or gives something other than
    text.
    """
    by_id = _unique(benchmark, items)
    responses = _kept(journal, benchmark, by_id, run)
    todo = [item for item in items if item.id not in responses]
    for start in range(0, len(todo), chunk):
        if progress is not None:
            progress(benchmark, len(responses), len(items))
        batch = todo[start : start + chunk]
        got = generate(batch)
        wanted = [item.id for item in batch if item.id in got or not may_miss]
        check_ids(f"{benchmark}: responses of the model", wanted, got)
        batch = [item for item in batch if item.id in got]
        for item in batch:
            if not isinstance(got[item.id], str):
                rule = f"the response to {item.id!r} is a {type(got[item.id]).__name__}, not text"
                raise DataError(rule, key=benchmark, mend="give a str")
        journal.add(row_of(benchmark, item, got[item.id]) | run for item in batch)
        responses |= {item.id: got[item.id] for item in batch}
    if progress is not None:
        progress(benchmark, len(items), len(items))
    return {item.id: responses[item.id] for item in items if item.id in responses}


def run(
    benchmarks: Sequence[Benchmark],
    generate: Generate,
    output: str | Path,
    *,
    model: str,
    settings: dict[str, Any] | None = None,
    chunk: int = 64,
    progress: Progress | None = None,
    partial: Callable[[Benchmark, dict[str, str]], Scored] | None = None,
) -> dict[str, Any]:
    """Answer and score every benchmark; writes the three files and returns what ``results.json`` holds.

    ``settings`` (JSON values: decoding, seed, checkpoint hash, ...) is stored, and its hash stands in
    each response row, so that responses of another model or other settings are never mixed in. For
    sampled decoding ``generate`` must draw each item's answer from a seed of its own, or a resumed
    run differs from an unbroken one. ``partial`` scores a benchmark of which ``generate`` left items out;
    without it that is an error.
    """
    folder = Path(output)
    names = [benchmark.name for benchmark in benchmarks]
    if len(set(names)) < len(names):
        raise DataError(f"benchmark names repeat: {names}", key="benchmarks", mend="give each its own name")
    settings = settings or {}
    journal = Journal(folder / "responses.jsonl")
    this = {"model": model, "settings": content_hash(settings)[:16]}
    results: dict[str, Any] = {}
    verdicts: list[Verdict] = []
    for benchmark in benchmarks:
        responses = answer(
            benchmark.name, benchmark.items, generate, journal, run=this, chunk=chunk, progress=progress,
            may_miss=partial is not None,
        )  # fmt: skip
        scored = (partial or benchmark_score)(benchmark, responses)
        results[benchmark.name] = scored.result
        verdicts += scored.verdicts
    whole = {"model": model, "settings": settings, "benchmarks": results}
    write_records(folder / "verdicts.jsonl", (writable(v) for v in verdicts))
    write_json(folder / "results.json", whole)
    return whole


def benchmark_score(benchmark: Benchmark, responses: dict[str, str]) -> Scored:
    """The benchmark's own scoring, which wants every item answered."""
    return benchmark.score(responses)


def writable(verdict: Verdict) -> Verdict:
    """Lone surrogates, which UTF-8 cannot hold, as question marks."""
    texts = {"response": verdict.response, "reason": verdict.reason}
    clean = {k: v and v.encode("utf-8", "replace").decode() for k, v in texts.items()}
    return verdict if clean == texts else verdict.model_copy(update=clean)
