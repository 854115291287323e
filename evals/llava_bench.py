"""LLaVA-Bench (Liu et al. 2023): a judge rates a reference answer and the model's; their ratio is the score.

The judge reads what a text can tell of the image (captions, boxes), the question and both answers, and
starts its reply with two numbers from 1 to 10. ``official`` counts a reply without them as -1 and -1, as
LLaVA's own scripts do; ``strict`` leaves it out and says how many there were.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.formats.llava_bench import LlavaBenchItem
from data.formats.llava_bench import read_questions as read_items
from data.jsonl import DataError
from data.schema import Image, Verdict
from evals import metrics
from evals.journal import content_hash
from evals.judges import Judge, JudgeRequest, announce
from evals.runner import EvalItem, Scored, check_ids

CATEGORIES = ("conv", "detail", "complex")

PROMPT = """\
Two programs were asked a question about a picture. You cannot see the picture; what follows describes it, \
and you may take it as true.

{context}

Question: {question}

First answer: {reference}

Second answer: {response}

Rate each answer from 1 to 10 for being helpful, to the point, accurate and detailed about this picture. \
What the description contradicts, or gives no ground for, counts against an answer. The order in which the \
answers stand must not matter. Start with one line that holds the two ratings only, the first answer's and \
then the second's, with a blank between them. Then explain them.
"""


_PLACE = re.compile(r"\{(context|question|reference|response)\}")


@dataclass(frozen=True)
class BenchItem(LlavaBenchItem):
    """One question, and what the judge is asked of it."""

    def prompt(self, response: str) -> str:
        """The judge's prompt. Values are put in once; braces in them mean nothing."""
        values = {
            "context": self.context,
            "question": self.question,
            "reference": self.reference,
            "response": response,
        }
        return _PLACE.sub(lambda match: values[match[1]], PROMPT)


def scores_official(text: str) -> tuple[float, float] | None:
    """The two numbers of the first line (blanks or a comma between them), or None."""
    parts = text.split("\n")[0].replace(",", " ").split()
    if len(parts) != 2:
        return None
    try:
        first, second = float(parts[0]), float(parts[1])
    except ValueError:
        return None
    return (first, second) if np.isfinite([first, second]).all() else None


def scores_strict(text: str) -> tuple[float, float] | None:
    """The same, and both from 1 to 10."""
    found = scores_official(text)
    return found if found and all(1 <= score <= 10 for score in found) else None


RULES = {"official": scores_official, "strict": scores_strict}


def relative(sums: metrics.Floats) -> metrics.Floats:
    """Percentage of the model's sum over the reference's, from sums (..., 2)."""
    return 100 * metrics.divide(sums[..., 0], sums[..., 1])


@dataclass(frozen=True)
class LlavaBenchBenchmark:
    """The questions with their judge; without one they are asked and not rated."""

    questions: tuple[BenchItem, ...]
    judge: Judge | None
    #: how often the judge is asked the same
    repeats: int = 1
    name: str = "llava_bench"
    n_boot: int = 1000
    seed: int = 0
    #: of all questions with their truth; computed where it is not given
    sha256: str = ""

    def __post_init__(self) -> None:
        if not self.questions:
            raise DataError("no questions", key=self.name, mend="give a file with questions")
        if not self.sha256:
            truth = [[q.id, q.image, q.question, q.category, q.reference, q.context] for q in self.questions]
            object.__setattr__(self, "sha256", content_hash(truth))

    @property
    def items(self) -> list[EvalItem]:
        return [EvalItem(q.id, Image(id=q.image, path=q.image), q.question) for q in self.questions]

    def only(self, ids: Container[str]) -> LlavaBenchBenchmark:
        """The same with these questions alone."""
        return replace(self, questions=tuple(q for q in self.questions if q.id in ids))

    def score(self, responses: Mapping[str, str]) -> Scored:
        """Relative score in percent, overall and by category, under both rules, with intervals.

        Questions on which the judge gave nothing stand in ``unjudged`` and in no figure. With ``repeats`` the
        judge is asked again: its first words count, the others say how steady it is.
        """
        check_ids(f"{self.name}: responses", (q.id for q in self.questions), responses)
        head: dict[str, Any] = {"n": len(self.questions), "sha256": self.sha256}
        if self.judge is None:
            return Scored(head | {"judge": None}, [])
        requests = self.requests(responses)
        asked = [[replace(r, repeat=k) for r in requests] for k in range(self.repeats)]
        announce(self.judge, [request for again in asked for request in again])
        rounds = [self.judge.judge(again) for again in asked]
        said = rounds[0]
        result = head | {
            "judge": self.judge.name,
            "prompt": {"name": "built-in", "sha256": hashlib.sha256(PROMPT.encode()).hexdigest()},
            "unjudged": [q.id for q in self.questions if q.id not in said],
        }
        for rule, parse in RULES.items():
            unrated = sorted(name for name, text in said.items() if parse(text) is None)
            result[rule] = self._figures(_kept(said, rule)) | {"unrated": unrated}
            if self.repeats > 1:
                result[rule]["repeats"] = _noise([_kept(words, rule) for words in rounds])
        return Scored(result, self._verdicts(responses, said))

    def requests(self, responses: Mapping[str, str]) -> list[JudgeRequest]:
        """What the judge is asked."""
        return [
            JudgeRequest(
                id=q.id,
                image=q.image,
                question=q.question,
                response=responses[q.id],
                reference=q.reference,
                objects=(),
                prompt=q.prompt(responses[q.id]),
            )
            for q in self.questions
        ]

    @property
    def ratings(self) -> dict[str, Callable[[str], float | None]]:
        """Rule -> the model's score that it reads from a judge's words; None is left out."""

        def official(text: str) -> float:
            return (scores_official(text) or (-1.0, -1.0))[1]

        def strict(text: str) -> float | None:
            found = scores_strict(text)
            return None if found is None else found[1]

        return {"official": official, "strict": strict}

    def _figures(self, scores: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
        def figure(items: list[BenchItem]) -> dict[str, Any]:
            table = np.array([[scores[q.id][1], scores[q.id][0]] for q in items], dtype=float)
            options: dict[str, Any] = {"clusters": [q.image for q in items], "n_boot": self.n_boot}
            found = metrics.bootstrap(table, relative, seed=self.seed, **options).as_dict()
            means = {"model": float(table[:, 0].mean()), "reference": float(table[:, 1].mean())}
            return {"relative": found, "means": means}

        rated = [q for q in self.questions if q.id in scores]
        if not rated:
            return {"relative": None, "by_category": {}}
        order = {kind: place for place, kind in enumerate(CATEGORIES)}
        kinds = sorted({q.category for q in rated}, key=lambda kind: (order.get(kind, len(order)), kind))
        of_kind = {kind: figure([q for q in rated if q.category == kind]) for kind in kinds}
        return figure(rated) | {"by_category": of_kind}

    def _verdicts(self, responses: Mapping[str, str], said: Mapping[str, str]) -> list[Verdict]:
        assert self.judge is not None
        verdicts = []
        for q in self.questions:
            if q.id not in said:
                continue
            scores = scores_strict(said[q.id])
            verdicts.append(
                Verdict(
                    id=q.id,
                    image=q.image,
                    question=q.question,
                    response=responses[q.id],
                    label="unrated" if scores is None else q.category,
                    score=None if scores is None else scores[1],
                    judge=self.judge.name,
                    reason=said[q.id],
                    meta={"category": q.category, "reference": None if scores is None else scores[0]},
                )
            )
        return verdicts


def _kept(said: Mapping[str, str], rule: str) -> dict[str, tuple[float, float]]:
    """Scores (reference, model) that count: to the official rule what cannot be read is −1 and −1."""
    found = {name: RULES[rule](text) for name, text in said.items()}
    if rule == "official":
        return {name: scores or (-1.0, -1.0) for name, scores in found.items()}
    return {name: scores for name, scores in found.items() if scores is not None}


def _noise(rounds: Sequence[Mapping[str, tuple[float, float]]]) -> dict[str, Any]:
    """How much the relative score moves when the same judge is asked again: each round's, and an interval."""
    sums = [np.array(list(kept.values())).sum(axis=0) for kept in rounds if kept]
    scores = [float(relative(pair[::-1])) for pair in sums]
    return {"scores": scores, "interval": metrics.t_interval(scores).as_dict()}


def read_questions(
    questions: str | Path, references: str | Path, context: str | Path, *, limit: int | None = None
) -> tuple[BenchItem, ...]:
    """LLaVA-Bench from its JSON lines; see ``data.formats.llava_bench.read_questions``."""
    items = read_items(questions, references, context, limit=limit)
    return tuple(BenchItem(**vars(item)) for item in items)
