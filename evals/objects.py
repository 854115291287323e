"""Object hallucination of free descriptions, from any vocabulary: what is named against what is there.

``mentions`` turns a text into the object names that it claims, in order and with repeats; ground truth is
a set of names an image. CHAIR (Rohrbach et al. 2018) with COCO's vocabulary is one such pair.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from data.jsonl import DataError
from data.schema import Verdict
from evals import metrics, recall
from evals.journal import content_hash
from evals.runner import EvalItem, Scored, check_ids

MentionsOf = Callable[[str], list[str]]

_TOKEN = re.compile(r"\w+")


@dataclass(frozen=True)
class Described:
    """One description, read: names in the order of the text, false ones with their repeats."""

    id: str
    named: tuple[str, ...]
    false: tuple[str, ...]
    #: distinct true objects named, and those in the image
    found: int
    present: int
    words: int

    @property
    def repeats(self) -> int:
        """Mentions beyond the first of each object."""
        return len(self.named) - len(set(self.named))


def describe(name: str, text: str, truth: Collection[str], mentions: MentionsOf) -> Described:
    """Read one description against the objects of its image."""
    named, there = mentions(text), set(truth)
    false = tuple(n for n in named if n not in there)
    return Described(name, tuple(named), false, len(there & set(named)), len(there), len(text.split()))


def false_spans(text: str, truth: Collection[str], mentions: MentionsOf) -> list[tuple[int, int]]:
    """Where in the text (start, end) each false object is named, in order; for marking them in a report.

    Works with any ``mentions``: it watches which word makes the list of the text's beginning grow, then
    takes the shortest run of words up to there that names the object (so "dining table" is one span).
    """
    tokens = [(m.start(), m.end()) for m in _TOKEN.finditer(text)]
    spans: list[tuple[int, int]] = []
    names: list[str] = []
    for k, (_, end) in enumerate(tokens):
        now = mentions(text[:end])
        same = next((i for i, (a, b) in enumerate(zip(names, now)) if a != b), min(len(names), len(now)))
        del spans[same:]
        for name in now[same:]:
            starts = (s for s, _ in reversed(tokens[: k + 1]) if name in mentions(text[s:end]))
            start = next(starts, tokens[k][0])
            spans.append((start, end))
        names = now
    there = set(truth)
    return [span for span, name in zip(spans, names) if name not in there]


_FIGURES: dict[str, metrics.Statistic] = {
    "hallucination_rate": lambda s: metrics.divide(s[..., 0], s[..., 7]),
    "chair_i": lambda s: metrics.divide(s[..., 1], s[..., 2]),
    "recall": lambda s: metrics.divide(s[..., 3], s[..., 4]),
    "repeats": lambda s: metrics.divide(s[..., 5], s[..., 7]),
    "words": lambda s: metrics.divide(s[..., 6], s[..., 7]),
    "mentions": lambda s: metrics.divide(s[..., 2], s[..., 7]),
}


def _table(read: Sequence[Described]) -> metrics.Floats:
    """(n, 8): hallucinated, false, mentions, true named, present, repeats, words, 1."""
    rows = [
        (bool(d.false), len(d.false), len(d.named), d.found, d.present, d.repeats, d.words, 1) for d in read
    ]
    return np.array(rows, dtype=float)


def _prefixes(read: Sequence[Described]) -> recall.Prefixes:
    mentions = [[(name, name not in set(d.false)) for name in d.named] for d in read]
    return recall.prefixes(mentions, [d.present for d in read])


def _counts(read: Sequence[Described]) -> recall.Mentions:
    columns = [[len(d.false), len(d.named), d.found, d.present] for d in read]
    return recall.Mentions(*np.array(columns, dtype=np.int64).T)


@dataclass(frozen=True)
class ObjectBenchmark:
    """Descriptions of known images. ``truth`` maps an image's id to the objects in it."""

    questions: tuple[EvalItem, ...]
    truth: Mapping[str, Collection[str]]
    mentions: MentionsOf
    name: str = "objects"
    #: names the vocabulary in verdicts and results
    vocabulary: str = "world"
    n_boot: int = 1000
    seed: int = 0
    #: of all questions with their truth; computed where it is not given
    sha256: str = ""

    def __post_init__(self) -> None:
        if not self.questions:
            raise DataError("no items", key=self.name, mend="give at least one image to describe")
        missing = [item.image.id for item in self.questions if item.image.id not in self.truth]
        if missing:
            rule = f"no objects are known for {len(missing)} images (first {missing[0]!r})"
            raise DataError(rule, key=self.name, mend="give each image id its objects (perhaps none)")
        if not self.sha256:
            truth = [
                [i.id, i.image.id, i.question, sorted(set(self.truth[i.image.id]))] for i in self.questions
            ]
            object.__setattr__(self, "sha256", content_hash(truth))

    @property
    def items(self) -> list[EvalItem]:
        return list(self.questions)

    def only(self, ids: Container[str]) -> ObjectBenchmark:
        """The same with these items alone."""
        return replace(self, questions=tuple(item for item in self.questions if item.id in ids))

    def read(self, responses: Mapping[str, str]) -> list[Described]:
        """Every response read, in the items' order. DataError unless each item has exactly one."""
        check_ids(f"{self.name}: responses", (item.id for item in self.questions), responses)
        return [
            describe(item.id, responses[item.id], self.truth[item.image.id], self.mentions)
            for item in self.questions
        ]

    def score(self, responses: Mapping[str, str]) -> Scored:
        """Figures with intervals (images resampled).

        hallucination_rate: share of responses with a false object. chair_i: false mentions / mentions.
        recall: distinct true objects named / objects present, both summed over responses. repeats: mentions
        beyond the first of an object, a response. words and mentions: a response.
        """
        read = self.read(responses)
        table = _table(read)
        options: dict[str, Any] = {"clusters": self._images(), "n_boot": self.n_boot, "seed": self.seed}
        found = metrics.bootstraps(table, _FIGURES, **options)
        figures: dict[str, Any] = {name: interval.as_dict() for name, interval in found.items()}
        head: dict[str, Any] = {"n": len(read), "vocabulary": self.vocabulary, "sha256": self.sha256}
        verdicts = [
            Verdict(
                id=item.id,
                image=item.image.id,
                question=item.question,
                response=responses[item.id],
                label="hallucination" if d.false else "none",
                score=float(len(d.false)),
                judge=f"{self.name}/{self.vocabulary}",
                meta={"named": list(d.named), "false": list(d.false)},
            )
            for item, d in zip(self.questions, read)
        ]
        return Scored(head | figures | {"images": sorted({i.image.id for i in self.questions})}, verdicts)

    def compare(self, responses_a: Mapping[str, str], responses_b: Mapping[str, str]) -> dict[str, Any]:
        """a − b, paired by item, for each figure; and the hallucination figures where both name as much.

        ``equal_recall`` cuts the longer model's descriptions short, ``matched_recall`` weights strata of the
        number of true objects named; ``evals.metrics`` says what each is good for.
        """
        read_a, read_b = self.read(responses_a), self.read(responses_b)
        table_a, table_b = _table(read_a), _table(read_b)
        options: dict[str, Any] = {"clusters": self._images(), "n_boot": self.n_boot, "seed": self.seed}
        found: dict[str, Any] = {
            name: metrics.paired_difference(table_a, table_b, figure, **options).as_dict()
            for name, figure in _FIGURES.items()
        }
        matched = recall.matched_recall(_counts(read_a), _counts(read_b), **options)
        cut = recall.equal_recall(_prefixes(read_a), _prefixes(read_b), **options)
        test = metrics.mcnemar_exact(table_a[:, 0] == 0, table_b[:, 0] == 0)
        return {
            "differences": found,
            "mcnemar": asdict(test),
            "equal_recall": {
                "recall": cut.recall if np.isfinite(cut.recall) else None,
                "hallucination_rate": cut.hallucination_rate.as_dict(),
                "chair_i": cut.chair_i.as_dict(),
            },
            "matched_recall": {
                "recall": matched.recall if np.isfinite(matched.recall) else None,
                "strata": matched.strata,
                "share_a": matched.share_a,
                "share_b": matched.share_b,
                "hallucination_rate": matched.hallucination_rate.as_dict(),
                "chair_i": matched.chair_i.as_dict(),
            },
        }

    def _images(self) -> list[str]:
        return [item.image.id for item in self.questions]
