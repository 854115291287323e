"""Preferences as pairs of a better and a worse response, and how well scores agree with them."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Protocol

import numpy as np

from align.schedule import permutation
from data.jsonl import DataError
from data.schema import Facts, Image, Message, Preference

#: responses count as equally long within so many tokens
EQUAL_LENGTH = 2


@dataclass(frozen=True)
class Pair:
    """One comparison; ``id`` is the preference's (several pairs where that has more than two responses)."""

    id: str
    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    facts: Facts
    image: Image | None

    @property
    def cluster(self) -> str:
        """What it shares with pairs that it is not independent of: the picture, without one the id."""
        return picture_source(self.image) or f"no image/{self.id}"


def picture_source(image: Image | None) -> str | None:
    """Where a picture comes from: its path, URL, or a hash of its bytes; None of none.

    Records of one source show one picture, whatever id they give it: rows that bring bytes and no name have
    their own ids for it.
    """
    if image is None:
        return None
    if image.data is not None:
        return f"sha256:{hashlib.sha256(image.data).hexdigest()}"
    return image.path or image.url


def pairs_of(records: Sequence[Preference], target: str) -> tuple[list[Pair], Counter[str]]:
    """The pairs that ``target`` decides, and the counts of records passed over ("ties", "identical").

    ``target`` is "preferred" (hallucination, then helpfulness, then overall) or a question in ``choices``.
    The chosen response is paired with each of the others.

    Raises:
        DataError: no record was asked ``target``, or none is decided.
    """
    asked = {question for record in records for question in record.choices}
    if target != "preferred" and target not in asked:
        mend = f"choose from preferred, {', '.join(sorted(asked))}"
        raise DataError(f"no record answers {target!r}", key="target", mend=mend)
    pairs: list[Pair] = []
    skipped: Counter[str] = Counter()
    for record in records:
        best = record.preferred if target == "preferred" else record.choices.get(target)
        if best is None:
            skipped["ties"] += 1
            continue
        chosen = record.responses[best].text
        others = [r.text for i, r in enumerate(record.responses) if i != best]
        # one record compares two texts once, however often it holds them
        different = list(dict.fromkeys(text for text in others if text != chosen))
        skipped["identical"] += len(others) - len(different)
        pairs += [
            Pair(record.id, tuple(record.messages), chosen, text, record.facts, record.image)
            for text in different
        ]
    if not pairs:
        rule = f"all {len(records)} preferences are ties or pairs of equal texts"
        raise DataError(rule, key="target", mend="train on decided preferences, or choose another target")
    return pairs, skipped


def hold_out(pairs: Sequence[Pair], count: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(training, held-out) pairs; at least ``count`` are held out, with all pairs of their pictures.

    Whole pictures are held out, since a pair of one seen in training says little.

    Raises:
        DataError: that would leave less than half of the pairs to train on.
    """
    if count == 0:
        return list(pairs), []
    of_picture: dict[str, list[int]] = {}
    for i, pair in enumerate(pairs):
        of_picture.setdefault(pair.cluster, []).append(i)
    groups = list(of_picture.values())
    held: set[int] = set()
    for g in permutation(len(groups), seed, "holdout"):
        if len(held) >= count:
            break
        held.update(groups[g])
    if 2 * len(held) > len(pairs):
        rule = f"holding out {count} (with their pictures: {len(held)}) of {len(pairs)} pairs leaves too few"
        raise DataError(rule, key="holdout", mend="lower it, add data, or give eval_data")
    return (
        [p for i, p in enumerate(pairs) if i not in held],
        [p for i, p in enumerate(pairs) if i in held],
    )


def digest(pairs: Iterable[Pair]) -> str:
    """sha256 of which comparisons these are: ids, pictures, conversations and texts, whatever was chosen."""
    told = sorted(
        [p.id, p.cluster, [m.content for m in p.messages], sorted((p.chosen, p.rejected))] for p in pairs
    )
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


class HasFacts(Protocol):
    @property
    def id(self) -> str: ...

    @property
    def facts(self) -> Facts: ...


def check_facts(records: Iterable[HasFacts], kinds: Sequence[str], source: str | None = None) -> None:
    """Every record must have at least one fact of ``kinds``; no kinds, nothing to check.

    Raises:
        DataError: names the records that have none, and how to give them some.
    """
    if not kinds:
        return
    missing = [r.id for r in records if not any(getattr(r.facts, kind) for kind in kinds)]
    if missing:
        named = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise DataError(
            f"the reward model reads facts ({', '.join(kinds)}); {len(missing)} records have none: {named}",
            file=source,
            key="facts",
            mend="add them (data.captions gives captions by image), drop the records, "
            "or use a reward model without facts (facts: [])",
        )


@dataclass(frozen=True)
class PairReport:
    """How scores agree with the choices of n pairs. An equal score counts as half right."""

    n: int
    accuracy: float
    #: Wilson's 95 % interval of ``accuracy``, for as many pairs as ``independent`` says
    low: float
    high: float
    #: mean of −log σ(chosen − rejected)
    loss: float
    #: accuracy among pairs whose lengths differ by ``EQUAL_LENGTH`` tokens at most; NaN without any
    equal_length_accuracy: float
    equal_length_n: int
    #: what "the shorter response is better" scores on the same pairs
    shorter_accuracy: float
    #: Pearson's correlation of score and tokens over all responses; NaN where one does not vary
    length_correlation: float


def report(
    chosen: Sequence[float],
    rejected: Sequence[float],
    chosen_tokens: Sequence[int],
    rejected_tokens: Sequence[int],
    clusters: Sequence[Hashable] | None = None,
) -> PairReport:
    """Compare the scores of n pairs, whose responses have the given lengths in tokens.

    ``clusters``: what each pair shares with those that it is not independent of (``Pair.cluster``).

    Raises:
        ValueError: no pairs.
    """
    margin = np.asarray(chosen, dtype=float) - np.asarray(rejected, dtype=float)
    longer = np.asarray(chosen_tokens, dtype=float) - np.asarray(rejected_tokens, dtype=float)
    n = len(margin)
    if n == 0:
        raise ValueError("no pairs to compare; give at least one")
    right = _half_steps(margin)
    equal = np.abs(longer) <= EQUAL_LENGTH
    share = Share.of(right, clusters)
    return PairReport(
        n=n,
        accuracy=share.value,
        low=share.low,
        high=share.high,
        loss=float(np.logaddexp(0, -margin).mean()),
        equal_length_accuracy=float(right[equal].mean()) if equal.any() else math.nan,
        equal_length_n=int(equal.sum()),
        shorter_accuracy=float(_half_steps(-longer).mean()),
        length_correlation=_correlation(
            np.concatenate([chosen, rejected]), np.concatenate([chosen_tokens, rejected_tokens])
        ),
    )


@dataclass(frozen=True)
class Share:
    """A share of n cases with Wilson's 95 % interval, for as many as ``independent`` says; NaN of none."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, right: np.ndarray, clusters: Sequence[Hashable] | None = None) -> Share:
        """The share of ``right`` (n,), each 1, 0 or between; ``clusters``: as many names."""
        n = len(right)
        if not n:
            return cls(math.nan, math.nan, math.nan, 0)
        share, cases = float(right.mean()), independent(right, clusters)
        return cls(share, *wilson(share * cases, cases), n)


def independent(right: np.ndarray, clusters: Sequence[Hashable] | None = None) -> float:
    """How many independent cases tell as much of the share of ``right`` (n,) as these n, at most n.

    Cases of one cluster may be right or wrong together, as five annotators of one pair are. That is n over
    the design effect (Kish 1965): the variance of the clusters' sums over the binomial one. Where all are
    right, or all wrong, nothing tells, and clusters count.
    """
    n, share = len(right), float(right.mean())
    names = range(n) if clusters is None else clusters
    places: dict[Hashable, int] = {}
    of = [places.setdefault(name, len(places)) for name in names]
    if len(places) == 1 or share in (0, 1):
        return len(places)
    varied = float((np.bincount(of, weights=right - share) ** 2).sum())
    binomial = n * share * (1 - share)
    return n if varied <= binomial else n * binomial / varied


def by_length(
    chosen: Sequence[float],
    rejected: Sequence[float],
    chosen_tokens: Sequence[int],
    rejected_tokens: Sequence[int],
    clusters: Sequence[Hashable] | None = None,
) -> dict[str, Share]:
    """Agreement with the choices of n pairs: "all", and where the "shorter", one "equal"ly long (within
    ``EQUAL_LENGTH`` tokens) or the "longer" response was chosen. An equal score counts as half right;
    ``clusters`` as in :func:`report`.
    """
    names = range(len(chosen)) if clusters is None else clusters
    right = _half_steps(np.asarray(chosen, dtype=float) - np.asarray(rejected, dtype=float))
    longer = np.asarray(chosen_tokens, dtype=float) - np.asarray(rejected_tokens, dtype=float)
    equal = np.abs(longer) <= EQUAL_LENGTH
    bins = {"all": np.ones(len(right), dtype=bool), "shorter": ~equal & (longer < 0), "equal": equal,
            "longer": ~equal & (longer > 0)}  # fmt: skip
    return {name: Share.of(right[rows], list(compress(names, rows))) for name, rows in bins.items()}


def label_agreement(pairs: Sequence[Pair]) -> Share | None:
    """How often two annotators of one pair choose alike, where a pair has several; None where none has.

    A pair's annotators are its repeats: one id, the same two responses. Each pair counts once, with the share
    of its annotators' comparisons that agree. It is no limit to what scores can reach: see :func:`ceiling`.
    """
    choices: dict[tuple[str, str, frozenset[str]], Counter[str]] = {}
    for pair in pairs:
        texts = frozenset((pair.chosen, pair.rejected))
        choices.setdefault((pair.cluster, pair.id, texts), Counter())[pair.chosen] += 1
    several = {key: counts for key, counts in choices.items() if counts.total() > 1}
    if not several:
        return None
    alike = [sum(map(_twos, counts.values())) / _twos(counts.total()) for counts in several.values()]
    return Share.of(np.array(alike), [picture for picture, _, _ in several])


def ceiling(agreement: float) -> float:
    """The share of one annotator's choices that no scores can be expected to exceed.

    Where annotators choose one response of a pair with probability p, independently, two agree with p² +
    (1 − p)², and the best scores agree with one of them with max(p, 1 − p). With d = 2p − 1 the means are
    A = (1 + E d²)/2 and (1 + E|d|)/2, and by Jensen E|d| <= √(E d²) = √(2A − 1). All pairs equally hard reach
    it; pairs on which all agree, or none, reach A.
    """
    return (1 + math.sqrt(max(0.0, 2 * agreement - 1))) / 2


def _twos(n: int) -> int:
    return n * (n - 1) // 2


def wilson(successes: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval (1927) of a share; ``z`` = 1.96 gives 95 %."""
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def _half_steps(margin: np.ndarray) -> np.ndarray:
    return (margin > 0) + 0.5 * (margin == 0)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float((x * x).sum()) * float((y * y).sum()))
    return float((x * y).sum()) / scale if scale > 0 else math.nan
