"""What the models said, picture by picture: verdicts, the judge's reason, and false words marked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from apps.eval_runs import Part, Run, answered
from data.schema import Verdict
from data.thumbnail import thumbnail
from evals import amber
from evals.amber import AmberBenchmark
from evals.llava_bench import LlavaBenchBenchmark
from evals.mmbench import MmbenchBenchmark
from evals.mmhal import MmhalBenchmark
from evals.objects import ObjectBenchmark, false_spans
from evals.pope import PopeBenchmark
from evals.report import Answer, Gallery, GalleryItem
from evals.runner import Benchmark, EvalItem

#: sides of a picture on the page
SIDE = 320
#: what the verdicts on an item's answers come to; taken in turn, so that no kind crowds out another
KINDS = ("models differ", "wrong or hallucinated", "right", "not judged")
_YES = re.compile(r"\byes\b", re.IGNORECASE)


@dataclass(frozen=True)
class Shown:
    """One benchmark that models have answered."""

    key: str
    benchmark: Benchmark
    #: model -> what it answered
    parts: Mapping[str, Part]
    #: the image root
    root: str | None


def shown_of(runs: Sequence[Run], benchmarks: Sequence[Benchmark] | None = None) -> Iterator[Shown]:
    """Everything that the runs answered, named by their models; ``benchmarks`` as in ``answered``.

    Raises:
        DataError: a file of a benchmark is gone, or has changed since it was asked.
    """
    seen: set[str] = set()
    for run in runs:
        if set(run.benchmarks) <= seen:
            continue
        for key, suffix, benchmark in answered(run, benchmarks):
            if key not in seen:
                seen.add(key)
                parts = {r.name: r.parts[suffix] for r in runs if suffix in r.parts}
                said = {name: part for name, part in parts.items() if benchmark.name in part.responses}
                yield Shown(key, benchmark, said, run.settings.images)


def galleries(shown: Iterable[Shown], pictures: int = 12) -> list[Gallery]:
    """One gallery with ``pictures`` items of each benchmark, or none at all."""
    items = [
        item
        for one in (shown if pictures else ())
        for key, half in halves(one.key, one.benchmark)
        for item in items_of(key, half, one.parts, one.root, pictures)
    ]
    if not items:
        return []
    note = (
        f"Up to {pictures} items of each benchmark: in turn the first on which the models differ, that all "
        "get wrong, and that all get right. Marked: what the picture does not show."
    )
    return [Gallery("What the models say", items, note, filters=("benchmark", "verdict"))]


def halves(key: str, benchmark: Benchmark) -> list[tuple[str, Benchmark]]:
    """AMBER's descriptions and its questions apart, that neither crowds out the other."""
    if not isinstance(benchmark, AmberBenchmark):
        return [(key, benchmark)]
    described = {str(q.id) for q in benchmark.questions if not q.label}
    ids = {f"{key}: generative": described,
           f"{key}: discriminative": {str(q.id) for q in benchmark.questions} - described}  # fmt: skip
    return [(name, benchmark.only(half)) for name, half in ids.items() if half]


def items_of(
    key: str, benchmark: Benchmark, parts: Mapping[str, Part], root: str | None, pictures: int
) -> Iterator[GalleryItem]:
    """The chosen items of one benchmark."""
    for item, kind in chosen(benchmark, parts, pictures):
        answers = {}
        for name, part in parts.items():
            if item.id in (said := part.responses[benchmark.name]):
                verdicts = verdicts_on(benchmark, item, part)
                reason = next((v.reason for v in verdicts.values() if v.reason), "")
                spans = marks(benchmark, item, said[item.id], verdicts)
                answers[name] = Answer(said[item.id], spans, verdict_text(verdicts), reason)
        truth = truth_of(benchmark, item)
        yield GalleryItem(thumbnail(item.image, root, SIDE), item.question, answers, truth, (key, kind))


def chosen(benchmark: Benchmark, parts: Mapping[str, Part], pictures: int) -> list[tuple[EvalItem, str]]:
    """The first items of each kind in turn, those of new pictures before others; in the benchmark's order."""
    kinds: dict[str, list[EvalItem]] = {kind: [] for kind in KINDS}
    again: dict[str, list[EvalItem]] = {kind: [] for kind in KINDS}
    shown: set[tuple[str, str]] = set()
    for item in benchmark.items:
        if isinstance(benchmark, MmbenchBenchmark) and not item.id.endswith("/0"):
            continue
        found = [part for part in parts.values() if item.id in part.responses[benchmark.name]]
        if found:
            kind = kind_of([verdicts_on(benchmark, item, part) for part in found])
            (again if (item.image.id, kind) in shown else kinds)[kind].append(item)
            shown.add((item.image.id, kind))
    for kind, items in again.items():
        kinds[kind] += items
    picked: dict[str, str] = {}
    for place in range(max(map(len, kinds.values()), default=0)):
        for kind, items in kinds.items():
            if place < len(items) and len(picked) < pictures:
                picked.setdefault(items[place].id, kind)
    return [(item, picked[item.id]) for item in benchmark.items if item.id in picked]


def verdicts_on(benchmark: Benchmark, item: EvalItem, part: Part) -> dict[str, Verdict]:
    """Rule (of "pope/official") or judge -> its verdict on the item."""
    found = {
        judge: verdicts[item.id, item.question]
        for judge, verdicts in part.verdicts.items()
        if (item.id, item.question) in verdicts
    }
    return {judge.removeprefix(f"{benchmark.name}/"): verdict for judge, verdict in found.items()}


def kind_of(answers: Sequence[Mapping[str, Verdict]]) -> str:
    """Which of ``KINDS`` an item is by the first rule or judge of each answer."""
    bad = {is_bad(next(iter(verdicts.values()))) for verdicts in answers if verdicts} - {None}
    if not bad:
        return "not judged"
    if len(bad) > 1:
        return "models differ"
    return "wrong or hallucinated" if bad.pop() else "right"


def is_bad(verdict: Verdict) -> bool | None:
    """A hallucination, a wrong answer, or one that the judge puts below the reference; None: not rated."""
    if verdict.score is None:
        return None
    if verdict.label in ("hallucination", "none"):
        return verdict.label == "hallucination"
    reference = verdict.meta.get("reference")
    return verdict.score < (reference if isinstance(reference, int | float) else 1.0)


def verdict_text(verdicts: Mapping[str, Verdict]) -> str:
    """The verdicts in words; both rules where they differ."""
    told = {judge: _words(judge, verdict) for judge, verdict in verdicts.items()}
    if len(set(told.values())) == 1:
        return next(iter(told.values()))
    return "; ".join(f"{judge}: {text}" for judge, text in told.items())


def _words(judge: str, verdict: Verdict) -> str:
    if "false" in verdict.meta:
        false = ", ".join(verdict.meta["false"])
        return f"names what is not there: {false}" if false else "names nothing false"
    if verdict.reason is not None:
        reference = verdict.meta.get("reference")
        beside = f" (the reference {reference:g})" if isinstance(reference, int | float) else ""
        return f"{judge}: {'no rating' if verdict.score is None else f'rated {verdict.score:g}'}{beside}"
    return f"{verdict.label}, {'right' if verdict.score else 'wrong'}"


def marks(
    benchmark: Benchmark, item: EvalItem, text: str, verdicts: Mapping[str, Verdict]
) -> list[tuple[int, int]]:
    """Spans of what the picture does not show: objects, or the "yes" to a question whose answer is no."""
    if isinstance(benchmark, ObjectBenchmark):
        return false_spans(text, benchmark.truth[item.image.id], benchmark.mentions)
    verdict = next(iter(verdicts.values()), None)
    if verdict is None:
        return []
    if isinstance(benchmark, AmberBenchmark) and "false" in verdict.meta:
        return amber.spans_of(text, verdict.meta["false"])
    if verdict.meta.get("truth") == "no" and verdict.label == "yes":
        return [match.span() for match in _YES.finditer(text)]
    return []


def truth_of(benchmark: Benchmark, item: EvalItem) -> str:
    """What is true of the item, in a line."""
    if isinstance(benchmark, ObjectBenchmark):
        return "In the picture: " + (", ".join(sorted(set(benchmark.truth[item.image.id]))) or "nothing")
    if isinstance(benchmark, AmberBenchmark):
        known = next(q for q in benchmark.questions if str(q.id) == item.id)
        return f"Answer: {known.label}" if known.label else "In the picture: " + ", ".join(known.objects)
    if isinstance(benchmark, MmhalBenchmark):
        question = benchmark.question(item.id)
        return f"In the picture: {', '.join(question.image_content)}. A person's answer: {question.gt_answer}"
    if isinstance(benchmark, LlavaBenchBenchmark):
        return "The reference: " + next(q.reference for q in benchmark.questions if q.id == item.id)
    if isinstance(benchmark, MmbenchBenchmark):
        choice = next(q for q in benchmark.questions if item.id == f"{q.id}/0")
        return f"Answer: {choice.rotated(0)[1]}"
    if isinstance(benchmark, PopeBenchmark):
        split = next(split for split in benchmark.splits if item.id.startswith(f"{split.name}/"))
        return f"Answer: {next(q.label for q in split.items if split.id_of(q) == item.id)}"
    return ""
