"""AMBER (Wang et al. 2023): descriptions against annotated objects, and yes/no questions of five kinds.

Two rules stand side by side. ``official`` follows the benchmark's own ``inference.py`` to the digit: its
counts start from 0.001, precision and recall are of the answer "no" and rounded to a tenth before F1, an
answer counts only if it is exactly ``Yes`` or ``No``, and nouns are compared with their capitals.
``strict`` has no such constants, reads answers by ``evals.parse.yes_no_strict`` and nouns in lower case.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.formats.amber import GENERATIVE, AmberItem, AmberWords, read, read_words
from data.jsonl import DataError
from data.schema import Image, Verdict
from evals import metrics
from evals.journal import content_hash
from evals.nouns import NounFinder, finder, singulars
from evals.parse import YesNo, yes_no_strict
from evals.runner import EvalItem, Scored, check_ids

#: what the official counts start from
EPSILON = 0.001
#: words are one to the official scorer from here on (its ``--similarity_score``)
SIMILAR = 0.8
#: groups of yes/no questions, by the kinds in them
GROUPS: dict[str, tuple[str, ...]] = {
    "all": ("existence", "state", "number", "action", "relation"),
    "existence": ("existence",),
    "attribute": ("state", "number", "action"),
    "state": ("state",),
    "number": ("number",),
    "action": ("action",),
    "relation": ("relation",),
}
RULES = ("official", "strict")


@dataclass(frozen=True)
class Named:
    """What one description names of the vocabulary, in order: false mentions, and what is covered."""

    nouns: tuple[str, ...]
    false: tuple[str, ...]
    #: how many of the picture's objects are named, and of how many (a name twice counts twice)
    covered: int
    present: int
    #: the same of the objects that models like to add
    tempted: int
    tempting: int


def named(
    nouns: Sequence[str], item: AmberItem, words: AmberWords, near: Callable[[str, str], bool]
) -> Named:
    """Read the nouns of one description as the official scorer does.

    A noun is true if it, or a word near to it, is an object of the picture or means one; a tempting object
    counts as named by the same test, whether or not the noun is true by nearness. The first match in the
    order "words that mean the objects, then the objects" takes the mention.
    """
    there = _places(item.objects, words)
    added = _places(item.tempting, words)
    known = words.known
    counted = [noun for noun in nouns if noun in known]
    covered: set[int] = set()
    tempted: set[int | None] = set()
    false = []
    for noun in counted:
        if noun in words.safe:
            continue
        same = _first(there, noun, operator.eq)
        if same is not None:
            covered.add(same)
            continue
        tempted |= {_first(added, noun, operator.eq), _first(added, noun, near)} - {None}
        alike = _first(there, noun, near)
        if alike is None:
            false.append(noun)
        else:
            covered.add(alike)
    return Named(
        tuple(counted), tuple(false), len(covered), len(item.objects), len(tempted), len(item.tempting)
    )


def spans_of(text: str, false: Collection[str]) -> list[tuple[int, int]]:
    """Where in a description (start, end) words stand that its ``false`` mentions come from."""
    wanted = {noun.lower() for noun in false}
    words = re.finditer(r"[^\W\d_]+(?:[-'][^\W\d_]+)*", text)
    return [
        word.span() for word in words if wanted & {form.lower() for form in (word[0], *singulars(word[0]))}
    ]


def _places(objects: Sequence[str], words: AmberWords) -> list[tuple[str, int]]:
    """(word, index of the object that it names), in the official scorer's order."""
    meaning = [(word, i) for i, name in enumerate(objects) for word in words.relation.get(name, ())]
    return meaning + [(name, i) for i, name in enumerate(objects)]


def _first(places: Sequence[tuple[str, int]], noun: str, match: Callable[[str, str], bool]) -> int | None:
    return next((i for word, i in places if match(noun, word)), None)


def said_official(text: str) -> YesNo | None:
    """Only the bare words count: ``Yes`` and ``No``, so "Yes." and "no" are neither."""
    return {"Yes": "yes", "No": "no"}.get(text)  # type: ignore[return-value]


SAID: dict[str, Callable[[str], YesNo | None]] = {"official": said_official, "strict": yes_no_strict}

#: columns of a description: false mentions, mentions, covered, present, tempted, tempting, free of false, 1
_FIGURES: dict[str, tuple[int, int]] = {"chair": (0, 1), "cover": (2, 3), "hal": (6, 7), "cog": (4, 5)}
#: columns of a yes/no question: right, 1, right "no", label "no", said "no"
_RIGHT, _ONE, _HIT, _NO, _SAID_NO = range(5)


def percent(top: metrics.Floats, bottom: metrics.Floats, epsilon: float) -> metrics.Floats:
    """Percentage of sums, the lower one ``epsilon`` more; NaN over 0."""
    return 100 * metrics.divide(top, bottom + epsilon)


def _tenths(values: metrics.Floats) -> metrics.Floats:
    """Rounded as Python rounds; numpy's way differs in the last digit where a half is not exact."""
    return np.array([round(float(v), 1) for v in np.ravel(values)]).reshape(np.shape(values))


def generative_figure(name: str, epsilon: float) -> metrics.Statistic:
    """chair, cover, hal or cog from sums (..., 8), in percent."""
    top, bottom = _FIGURES[name]

    def statistic(sums: metrics.Floats) -> metrics.Floats:
        found = percent(sums[..., top], sums[..., bottom], epsilon)
        return 100 - found if name == "hal" else found

    return statistic


def discriminative_figure(name: str, group: str, official: bool) -> metrics.Statistic:
    """accuracy, precision, recall or f1 from sums (..., 5), in percent; positive is the answer "no"."""
    start = EPSILON * len(GROUPS[group]) if official and group != "all" else EPSILON * official

    def part(sums: metrics.Floats, top: int, bottom: int) -> metrics.Floats:
        found = percent(sums[..., top], sums[..., bottom], start)
        return _tenths(found) if official else found

    def statistic(sums: metrics.Floats) -> metrics.Floats:
        if name == "accuracy":
            return part(sums, _RIGHT, _ONE)
        precision, recall = part(sums, _HIT, _SAID_NO), part(sums, _HIT, _NO)
        if name == "precision":
            return precision
        if name == "recall":
            return recall
        # the official F1 has a constant of its own, ten times as large for existence
        small = (0.001 if group == "existence" else 0.0001) * official
        p, r = np.nan_to_num(precision / 100), np.nan_to_num(recall / 100)
        return np.nan_to_num(100 * metrics.divide(2 * p * r, p + r + small))

    return statistic


@dataclass(frozen=True)
class AmberBenchmark:
    """The questions that are given, of one kind or of both; ids are AMBER's numbers as text."""

    questions: tuple[AmberItem, ...]
    words: AmberWords
    finder: NounFinder
    name: str = "amber"
    n_boot: int = 1000
    seed: int = 0
    #: of all questions with their truth; computed where it is not given
    sha256: str = ""

    def __post_init__(self) -> None:
        if not self.questions:
            raise DataError("no questions", key=self.name, mend="give a file with questions")
        if not self.sha256:
            truth = [self.words.model_dump(), *(q.model_dump() for q in self.questions)]
            object.__setattr__(self, "sha256", content_hash(truth))

    @property
    def items(self) -> list[EvalItem]:
        return [EvalItem(str(q.id), Image(id=q.image, path=q.image), q.query) for q in self.questions]

    def only(self, ids: Container[str]) -> AmberBenchmark:
        """The same with these questions alone."""
        return replace(self, questions=tuple(q for q in self.questions if str(q.id) in ids))

    def score(self, responses: Mapping[str, str]) -> Scored:
        """Figures in percent under both rules, with intervals (images resampled).

        generative: chair (false mentions / mentions), cover (objects named / present), hal (descriptions
        with a false mention), cog (tempting objects named / tempting). discriminative: accuracy, precision,
        recall and F1 of "no" for each group of ``GROUPS``. DataError unless every id has a response.
        """
        check_ids(f"{self.name}: responses", (str(q.id) for q in self.questions), responses)
        described = [q for q in self.questions if q.type == GENERATIVE]
        asked = [q for q in self.questions if q.type != GENERATIVE]
        result: dict[str, Any] = {"n": len(self.questions), "sha256": self.sha256}
        verdicts: list[Verdict] = []
        if described:
            result["nouns"] = self.finder.name
            result["generative"] = {"n": len(described)}
        if asked:
            result["discriminative"] = {"n": len(asked)}
        for rule in RULES:
            if described:
                read_ = self.read(responses, rule)
                result["generative"][rule] = self._generative(described, read_, rule)
                verdicts += self._of_descriptions(described, read_, responses, rule)
            if asked:
                said = {q.id: SAID[rule](responses[str(q.id)]) for q in asked}
                result["discriminative"][rule] = self._discriminative(asked, said, rule)
                verdicts += self._of_answers(asked, said, responses, rule)
        return Scored(result, verdicts)

    @property
    def yes_no(self) -> dict[str, list[tuple[str, str, str]]]:
        """Group -> (id, image, right answer) of its yes/no questions."""
        found: dict[str, list[tuple[str, str, str]]] = {}
        for group, kinds in GROUPS.items():
            for q in self.questions:
                if q.label is not None and q.type in kinds:
                    found.setdefault(group, []).append((str(q.id), q.image, q.label))
        return found

    def read(self, responses: Mapping[str, str], rule: str) -> list[Named]:
        """Every description read by a rule, in the questions' order."""
        found = []
        for item in self.questions:
            if item.type == GENERATIVE:
                text = responses[str(item.id)]
                nouns = self.finder.nouns(text.lower() if rule == "strict" else text)
                found.append(named(nouns, item, self.words, self._near))
        return found

    def _near(self, a: str, b: str) -> bool:
        return self.finder.similarity(a, b) > SIMILAR

    def compare(
        self, responses_a: Mapping[str, str], responses_b: Mapping[str, str], rule: str = "official"
    ) -> dict[str, Any]:
        """a − b on the same questions: each generative figure, accuracy and F1 of each group, McNemar."""
        found: dict[str, Any] = {"rule": rule}
        described = [q for q in self.questions if q.type == GENERATIVE]
        asked = [q for q in self.questions if q.type != GENERATIVE]
        for responses in (responses_a, responses_b):
            check_ids(f"{self.name}: responses", (str(q.id) for q in self.questions), responses)
        if described:
            a, b = (_described(self.read(r, rule)) for r in (responses_a, responses_b))
            images = [q.image for q in described]
            for name in _FIGURES:
                figure = generative_figure(name, EPSILON * (rule == "official"))
                found[name] = self._difference(a, b, figure, images)
        if asked:
            a, b = (
                _answered(asked, {q.id: SAID[rule](r[str(q.id)]) for q in asked})
                for r in (responses_a, responses_b)
            )
            for group, kinds in GROUPS.items():
                rows = [k for k, q in enumerate(asked) if q.type in kinds]
                if rows:
                    images = [asked[k].image for k in rows]
                    found[group] = {
                        name: self._difference(
                            a[rows], b[rows], discriminative_figure(name, group, rule == "official"), images
                        )
                        for name in ("accuracy", "f1")
                    }
            found["mcnemar"] = asdict(metrics.mcnemar_exact(a[:, _RIGHT], b[:, _RIGHT]))
        return found

    def _difference(
        self, a: metrics.Floats, b: metrics.Floats, figure: metrics.Statistic, images: list[str]
    ) -> dict[str, Any]:
        options: dict[str, Any] = {"clusters": images, "n_boot": self.n_boot, "seed": self.seed}
        return metrics.paired_difference(a, b, figure, **options).as_dict()

    def _intervals(
        self, table: metrics.Floats, of: Mapping[str, metrics.Statistic], images: list[str]
    ) -> dict[str, metrics.Interval]:
        return metrics.bootstraps(table, of, clusters=images, n_boot=self.n_boot, seed=self.seed)

    def _generative(self, items: Sequence[AmberItem], read_: Sequence[Named], rule: str) -> dict[str, Any]:
        table, images = _described(read_), [item.image for item in items]
        epsilon = EPSILON * (rule == "official")
        found: dict[str, Any] = {}
        figures = {name: generative_figure(name, epsilon) for name in _FIGURES}
        for name, one in self._intervals(table, figures, images).items():
            interval = one.as_dict()
            if rule == "official" and interval["value"] is not None:
                interval["value"] = round(interval["value"], 1)
            found[name] = interval
        return found | {"without_nouns": sum(not one.nouns for one in read_)}

    def _discriminative(
        self, items: Sequence[AmberItem], said: Mapping[int, YesNo | None], rule: str
    ) -> dict[str, Any]:
        table = _answered(items, said)
        found: dict[str, Any] = {"unparsed": sum(answer is None for answer in said.values())}
        for group, kinds in GROUPS.items():
            rows = [k for k, item in enumerate(items) if item.type in kinds]
            if not rows:
                continue
            images = [items[k].image for k in rows]
            names = ("accuracy", "precision", "recall", "f1")
            of = {name: discriminative_figure(name, group, rule == "official") for name in names}
            figures: dict[str, Any] = {}
            for name, one in self._intervals(table[rows], of, images).items():
                interval = one.as_dict()
                if rule == "official" and interval["value"] is not None:
                    interval["value"] = round(interval["value"], 1)
                figures[name] = interval
            found[group] = figures
        return found

    def _of_descriptions(
        self, items: Sequence[AmberItem], read_: Sequence[Named], responses: Mapping[str, str], rule: str
    ) -> list[Verdict]:
        return [
            Verdict(
                id=str(item.id),
                image=item.image,
                question=item.query,
                response=responses[str(item.id)],
                label="hallucination" if one.false else "none",
                score=float(len(one.false)),
                judge=f"{self.name}/{rule}",
                meta={"named": list(one.nouns), "false": list(one.false), "truth": item.objects},
            )
            for item, one in zip(items, read_, strict=True)
        ]

    def _of_answers(
        self,
        items: Sequence[AmberItem],
        said: Mapping[int, YesNo | None],
        responses: Mapping[str, str],
        rule: str,
    ) -> list[Verdict]:
        return [
            Verdict(
                id=str(item.id),
                image=item.image,
                question=item.query,
                response=responses[str(item.id)],
                label=said[item.id] or "unparsed",
                score=float(said[item.id] == item.label),
                judge=f"{self.name}/{rule}",
                meta={"truth": item.label, "type": item.type},
            )
            for item in items
        ]


def _described(read_: Sequence[Named]) -> metrics.Floats:
    rows = [
        (
            len(one.false),
            len(one.nouns),
            one.covered,
            one.present,
            one.tempted,
            one.tempting,
            not one.false,
            1,
        )
        for one in read_
    ]
    return np.array(rows, dtype=float)


def _answered(items: Sequence[AmberItem], said: Mapping[int, YesNo | None]) -> metrics.Floats:
    rows = []
    for item in items:
        answer, no = said[item.id], item.label == "no"
        right = answer == item.label
        rows.append((right, True, right and no, no, answer == "no"))
    return np.array(rows, dtype=float)


def read_benchmark(
    queries: Sequence[str | Path],
    annotations: str | Path,
    relation: str | Path,
    safe_words: str | Path,
    *,
    nouns: str = "auto",
    limit: int | None = None,
    **options: Any,
) -> AmberBenchmark:
    """AMBER from its files, one or both of questions; ``nouns`` as :func:`evals.nouns.finder` takes it."""
    words = read_words(relation, safe_words)
    items = (item for path in queries for item in read(path, annotations, limit=limit))
    return AmberBenchmark(tuple(items), words, finder(words.known, nouns), **options)
