"""POPE: yes/no questions about objects, in splits by how absent objects were chosen (Li et al. 2023).

Two parsing rules stand side by side, ``official`` and ``strict`` (``evals.parse``), because scorers in use
differ by up to half of the accuracy on the same free-form answers. The positive class is "yes".
"""

from __future__ import annotations

import functools
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.formats.pope import PopeItem, split_name
from data.formats.pope import read as read_items
from data.jsonl import DataError
from data.schema import Image, Verdict
from evals import metrics
from evals.journal import content_hash, file_hash
from evals.parse import YES_NO_RULES, YesNo
from evals.runner import EvalItem, Scored, check_ids

#: one row per question: tp, fp, fn, right, said yes, 1
_TP, _FP, _FN, _RIGHT, _YES, _ONE = range(6)


@dataclass(frozen=True)
class PopeSplit:
    """The questions of one file. ``sha256`` is of its bytes: several random files are in circulation."""

    name: str
    items: tuple[PopeItem, ...]
    sha256: str

    def id_of(self, item: PopeItem) -> str:
        return f"{self.name}/{item.question_id}"


def read_split(path: str | Path, name: str | None = None, *, limit: int | None = None) -> PopeSplit:
    """A POPE file; its name gives the split's (``.._random.json``) unless given. DataError on a bad line."""
    items = read_items(path, limit=limit)
    return PopeSplit(name or split_name(path) or Path(path).stem, tuple(items), file_hash(path))


def split_of(name: str, items: Sequence[PopeItem]) -> PopeSplit:
    """A split made in memory; the hash is of its questions and labels."""
    return PopeSplit(name, tuple(items), content_hash([item.model_dump(mode="json") for item in items]))


def _table(split: PopeSplit, said: Mapping[str, YesNo | None]) -> metrics.Floats:
    """(questions, 6) columns tp, fp, fn, right, said yes, 1. Unparsed is neither yes nor right."""
    rows = []
    for item in split.items:
        answer, yes = said[split.id_of(item)], item.label == "yes"
        rows.append(
            (
                answer == "yes" and yes,
                answer == "yes" and not yes,
                answer != "yes" and yes,
                answer == item.label,
                answer == "yes",
                True,
            )
        )
    return np.array(rows, dtype=float)


_FIGURES: dict[str, metrics.Statistic] = {
    "accuracy": lambda s: metrics.divide(s[..., _RIGHT], s[..., _ONE]),
    "precision": lambda s: metrics.divide(s[..., _TP], s[..., _TP] + s[..., _FP]),
    "recall": lambda s: metrics.divide(s[..., _TP], s[..., _TP] + s[..., _FN]),
    "f1": metrics.f1,
    "yes_ratio": lambda s: metrics.divide(s[..., _YES], s[..., _ONE]),
}


def _mean_f1(splits: int) -> metrics.Statistic:
    """Mean of the splits' F1, from sums of ``splits`` blocks of six columns side by side."""

    def statistic(sums: metrics.Floats) -> metrics.Floats:
        return metrics.f1(sums.reshape(*sums.shape[:-1], splits, 6)).mean(axis=-1)

    return statistic


def _parsed(responses: Mapping[str, str], rule: str) -> dict[str, YesNo | None]:
    """What the rule reads in each response, by id; answers repeat, so each text is read once."""
    known: dict[str, YesNo | None] = {}
    for text in responses.values():
        if text not in known:
            known[text] = YES_NO_RULES[rule](text)
    return {name: known[text] for name, text in responses.items()}


@dataclass(frozen=True)
class PopeBenchmark:
    """The splits together; ids are ``<split>/<question_id>``."""

    splits: tuple[PopeSplit, ...]
    #: folder of the pictures inside the image root
    prefix: str = ""
    name: str = "pope"
    n_boot: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        names = [split.name for split in self.splits]
        if not names or len(set(names)) < len(names):
            raise DataError(f"split names are {names}", key="pope", mend="give splits with distinct names")
        for split in self.splits:
            if not split.items:
                raise DataError("no questions", key=f"pope/{split.name}", mend="give a file with questions")

    @functools.cached_property
    def items(self) -> list[EvalItem]:
        def image(name: str) -> Image:
            return Image(id=name, path=f"{self.prefix.rstrip('/')}/{name}" if self.prefix else name)

        return [EvalItem(s.id_of(i), image(i.image), i.text) for s in self.splits for i in s.items]

    def only(self, ids: Container[str]) -> PopeBenchmark:
        """The same with these questions alone; a split that is left without any is left out."""
        if all(split.id_of(item) in ids for split in self.splits for item in split.items):
            return self
        splits = (
            replace(split, items=tuple(item for item in split.items if split.id_of(item) in ids))
            for split in self.splits
        )
        return replace(self, splits=tuple(split for split in splits if split.items))

    def score(self, responses: Mapping[str, str]) -> Scored:
        """All figures under both rules, by split and overall; DataError unless every id has a response.

        Accuracy counts an unparsed answer as wrong; recall as a "yes" not said. F1 is 0 where no "yes"
        was said, precision then None. Overall F1 is the mean of the splits' F1. Intervals resample images.
        """
        self._check(responses)
        splits: dict[str, Any] = {
            split.name: {
                "n": len(split.items),
                "images": len({item.image for item in split.items}),
                "sha256": split.sha256,
            }
            for split in self.splits
        }
        overall: dict[str, Any] = {"n": sum(len(s.items) for s in self.splits)}
        verdicts: list[Verdict] = []
        for rule in YES_NO_RULES:
            said = _parsed(responses, rule)
            tables = self._tables(said)
            for split in self.splits:
                splits[split.name][rule] = self._figures(split, tables[split.name], said)
            wide, images = self._side_by_side(tables)
            overall[rule] = {"f1": self._interval(wide, _mean_f1(len(self.splits)), images)}
            verdicts += self._verdicts(responses, said, rule)
        return Scored({"overall": overall, "splits": splits}, verdicts)

    @property
    def yes_no(self) -> dict[str, list[tuple[str, str, str]]]:
        """Split -> (id, image, right answer) of its questions."""
        return {s.name: [(s.id_of(item), item.image, item.label) for item in s.items] for s in self.splits}

    def compare(
        self, responses_a: Mapping[str, str], responses_b: Mapping[str, str], rule: str = "official"
    ) -> dict[str, Any]:
        """a − b on the same questions: overall F1 (paired bootstrap over images), accuracy (McNemar)."""
        both = []
        for responses in (responses_a, responses_b):
            self._check(responses)
            both.append(self._tables(_parsed(responses, rule)))
        (wide_a, images), (wide_b, _) = (self._side_by_side(tables) for tables in both)
        difference = metrics.paired_difference(
            wide_a, wide_b, _mean_f1(len(self.splits)), clusters=images, n_boot=self.n_boot, seed=self.seed
        )
        right_a, right_b = (np.concatenate([t[:, _RIGHT] for t in tables.values()]) for tables in both)
        test = metrics.mcnemar_exact(right_a, right_b)
        return {"rule": rule, "f1": difference.as_dict(), "mcnemar": asdict(test)}

    def _check(self, responses: Mapping[str, str]) -> None:
        check_ids(f"{self.name}: responses", (s.id_of(i) for s in self.splits for i in s.items), responses)

    def _tables(self, said: Mapping[str, YesNo | None]) -> dict[str, metrics.Floats]:
        return {split.name: _table(split, said) for split in self.splits}

    def _side_by_side(self, tables: Mapping[str, metrics.Floats]) -> tuple[metrics.Floats, list[str]]:
        """(questions of all splits, 6·splits), each split in its own block of columns; and the images."""
        wide = np.zeros((sum(len(t) for t in tables.values()), 6 * len(tables)))
        row = 0
        for block, table in enumerate(tables.values()):
            wide[row : row + len(table), 6 * block : 6 * block + 6] = table
            row += len(table)
        return wide, [item.image for split in self.splits for item in split.items]

    def _interval(self, table: metrics.Floats, of: metrics.Statistic, images: list[str]) -> dict[str, Any]:
        found = metrics.bootstrap(table, of, clusters=images, n_boot=self.n_boot, seed=self.seed)
        return found.as_dict()

    def _figures(
        self, split: PopeSplit, table: metrics.Floats, said: Mapping[str, YesNo | None]
    ) -> dict[str, Any]:
        images = [item.image for item in split.items]
        options: dict[str, Any] = {"clusters": images, "n_boot": self.n_boot, "seed": self.seed}
        intervals = metrics.bootstraps(table, _FIGURES, **options)
        found: dict[str, Any] = {name: interval.as_dict() for name, interval in intervals.items()}
        unparsed = sum(said[split.id_of(item)] is None for item in split.items)
        tp, fp, fn = (int(table[:, column].sum()) for column in (_TP, _FP, _FN))
        counts = {"tp": tp, "fp": fp, "fn": fn, "unparsed": unparsed}
        truth = sum(item.label == "yes" for item in split.items) / len(split.items)
        return found | {"counts": counts, "labels_yes_ratio": truth}

    def _verdicts(
        self, responses: Mapping[str, str], parsed: Mapping[str, YesNo | None], rule: str
    ) -> list[Verdict]:
        return [
            Verdict(
                id=split.id_of(item),
                image=item.image,
                question=item.text,
                response=responses[split.id_of(item)],
                label=(said := parsed[split.id_of(item)]) or "unparsed",
                score=float(said == item.label),
                judge=f"{self.name}/{rule}",
                meta={"truth": item.label},
            )
            for split in self.splits
            for item in split.items
        ]
