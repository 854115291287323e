"""MMBench (Liu et al. 2023): multiple choice under CircularEval, right only if right in every rotation.

A question with n options is asked n times, its options moved on by one each time, so that a model that
always says "A" scores nothing. ``official`` reads a letter as the benchmark's own heuristics do (without
their last resort, a language model); ``strict`` wants the letter first, or the option's text alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from data.formats.mmbench import LETTERS, Choice
from data.formats.mmbench import read_questions as read_questions
from data.jsonl import DataError
from data.schema import Image, Verdict
from evals import metrics
from evals.journal import content_hash
from evals.runner import EvalItem, Scored, check_ids

_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))


def letter_official(text: str, options: Sequence[str]) -> str | None:
    """The letter that an answer gives by the official heuristics, or None (counted as wrong).

    Punctuation becomes blanks; if exactly one option's letter stands as a word of its own it is the answer,
    unless an "A" stands in more than three words (it may be an article). Else the one option whose text the
    answer contains, in lower case.
    """
    letters = LETTERS[: len(options)]
    words = text.translate(_PUNCTUATION).split()
    found = [letter for letter in letters if letter in words]
    if len(found) == 1 and not ("A" in words and len(words) > 3):
        return found[0]
    low = text.lower()
    held = [letter for letter, option in zip(letters, options) if option.lower() in low]
    return held[0] if len(held) == 1 else None


_FIRST = re.compile(
    r"\W*(?i:(?:the |my )?(?:correct |right )?(?:answer|option)(?: is)?\W*)?([A-H])(.*)", re.DOTALL
)


def letter_strict(text: str, options: Sequence[str]) -> str | None:
    """The letter that an answer starts with, alone, with punctuation or its own option after it; or the
    letter of the option whose text is the whole answer. Else None: "B or C" and "A dog" give no letter."""
    letters = LETTERS[: len(options)]
    if (match := _FIRST.match(text)) and match[1] in letters:
        option, rest = options[letters.index(match[1])].lower(), match[2]
        if not rest.strip() or rest[0] in ".):," or rest.lower().startswith(f" {option}"):
            return match[1]
        return None
    plain = text.strip().strip(".").lower()
    same = [letter for letter, option in zip(letters, options) if option.strip().strip(".").lower() == plain]
    return same[0] if len(same) == 1 else None


RULES: dict[str, Callable[[str, Sequence[str]], str | None]] = {
    "official": letter_official,
    "strict": letter_strict,
}


@dataclass(frozen=True)
class MmbenchBenchmark:
    """The questions in all their rotations; ids are ``<question>/<rotation>``."""

    questions: tuple[Choice, ...]
    name: str = "mmbench"
    n_boot: int = 1000
    seed: int = 0
    #: of all questions with their truth; computed where it is not given
    sha256: str = ""

    def __post_init__(self) -> None:
        if not self.questions:
            raise DataError("no questions", key=self.name, mend="give a file with questions")
        if not self.sha256:
            truth = [
                [q.id, q.question, q.hint, list(q.options), q.answer, q.category] for q in self.questions
            ]
            object.__setattr__(self, "sha256", content_hash(truth))

    @property
    def items(self) -> list[EvalItem]:
        return [
            EvalItem(f"{q.id}/{by}", q.image or Image(id=q.id, path=f"{q.id}.jpg"), q.prompt(by))
            for q in self.questions
            for by in range(len(q.options))
        ]

    def only(self, ids: Container[str]) -> MmbenchBenchmark:
        """The same with the questions of which every rotation is among these."""
        whole = (q for q in self.questions if all(f"{q.id}/{by}" in ids for by in range(len(q.options))))
        return replace(self, questions=tuple(whole))

    def score(self, responses: Mapping[str, str]) -> Scored:
        """Circular accuracy, and that of the file's own order alone, under both rules, with intervals.

        By category too. An answer without a letter is wrong and counted in ``unparsed``. DataError unless
        every rotation has a response.
        """
        check_ids(f"{self.name}: responses", (item.id for item in self.items), responses)
        result: dict[str, Any] = {"n": len(self.questions), "sha256": self.sha256}
        verdicts: list[Verdict] = []
        for rule in RULES:
            right = self._right(responses, rule)
            said = self._said(responses, rule)
            result[rule] = self._figures(right) | {
                "unparsed": sum(letter is None for letter in said.values()),
                "by_category": {
                    category: self._figures(
                        {q.id: right[q.id] for q in self.questions if q.category == category}
                    )
                    for category in sorted({q.category for q in self.questions if q.category})
                },
            }
            verdicts += self._verdicts(responses, said, rule)
        return Scored(result, verdicts)

    def compare(
        self, responses_a: Mapping[str, str], responses_b: Mapping[str, str], rule: str = "official"
    ) -> dict[str, Any]:
        """a − b in circular accuracy, paired by question, with McNemar's test."""
        for responses in (responses_a, responses_b):
            check_ids(f"{self.name}: responses", (item.id for item in self.items), responses)
        a, b = (
            np.array([all(r) for r in self._right(responses, rule).values()], dtype=float)
            for responses in (responses_a, responses_b)
        )
        difference = metrics.paired_difference(
            metrics.mean_columns(a),
            metrics.mean_columns(b),
            metrics.ratio,
            clusters=[q.image.id if q.image else q.id for q in self.questions],
            n_boot=self.n_boot,
            seed=self.seed,
        )
        test = metrics.mcnemar_exact(a, b)
        return {"rule": rule, "circular": difference.as_dict(), "mcnemar": asdict(test)}

    def _said(self, responses: Mapping[str, str], rule: str) -> dict[str, str | None]:
        return {
            f"{q.id}/{by}": RULES[rule](responses[f"{q.id}/{by}"], q.rotated(by)[0])
            for q in self.questions
            for by in range(len(q.options))
        }

    def _right(self, responses: Mapping[str, str], rule: str) -> dict[str, list[bool]]:
        said = self._said(responses, rule)
        return {
            q.id: [said[f"{q.id}/{by}"] == q.rotated(by)[1] for by in range(len(q.options))]
            for q in self.questions
        }

    def _figures(self, right: Mapping[str, list[bool]]) -> dict[str, Any]:
        images = {q.id: q.image.id if q.image else q.id for q in self.questions}
        clusters = [images[name] for name in right]
        options: dict[str, Any] = {"clusters": clusters, "n_boot": self.n_boot, "seed": self.seed}
        return {
            "circular": metrics.mean_interval([all(r) for r in right.values()], **options).as_dict(),
            "vanilla": metrics.mean_interval([r[0] for r in right.values()], **options).as_dict(),
        }

    def _verdicts(
        self, responses: Mapping[str, str], said: Mapping[str, str | None], rule: str
    ) -> list[Verdict]:
        return [
            Verdict(
                id=(name := f"{q.id}/{by}"),
                image=q.image.id if q.image else q.id,
                question=q.prompt(by),
                response=responses[name],
                label=said[name] or "unparsed",
                score=float(said[name] == q.rotated(by)[1]),
                judge=f"{self.name}/{rule}",
                meta={"truth": q.rotated(by)[1], "category": q.category},
            )
            for q in self.questions
            for by in range(len(q.options))
        ]
