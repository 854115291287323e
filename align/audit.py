"""What a reward model's scores depend on: the same responses scored again with one thing changed.

A picture made grey, another record's picture, its facts, its response; true or false sentences added; the
response cut, or said twice; the facts in other orders. Every change is paired with the unchanged score of the
same response by id, and follows from the seed. ``evals.audit`` sums the rows up.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from PIL import Image as PILImage

from align.config import FactKind, RewardAuditSettings
from align.padding import Padding, padded, without
from align.pairs import picture_source
from align.pictures import encode_pictures, open_pictures
from align.render import ImageInput
from align.reward_model import RewardModel, ScoreItem
from align.schedule import step_seed
from data.jsonl import DataError
from data.schema import Facts, Image, Message, Preference

BLANK, IMAGE, FACTS, CONTEXT = "blank image", "other image", "other facts", "other context"
TRUE, FALSE = "true sentence", "false sentence"
#: another record's response, to the same question or to another
SWAPPED, ELSEWHERE = "other response", "other question's response"
#: what a grey picture is made of
GREY = (128, 128, 128)
#: a sentence ends at these, and the next begins behind a space
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Subject:
    """A conversation with its picture and facts, and the different responses to it."""

    id: str
    messages: tuple[Message, ...]
    responses: tuple[str, ...]
    facts: Facts
    image: Image | None

    @property
    def picture(self) -> str | None:
        """Where its picture comes from (``align.pairs.picture_source``)."""
        return picture_source(self.image)

    @property
    def asked(self) -> tuple[str, ...]:
        """What was said until now; of two that are equal, a response to one is one to the other."""
        return tuple(message.content for message in self.messages)


class Scorer(Protocol):
    """What is audited."""

    @property
    def reads(self) -> Sequence[FactKind]:
        """The fact kinds that it reads, none for a plain model."""

    def encode(self, pictures: Sequence[ImageInput]) -> Sequence[ImageInput]:
        """The pictures as ``score`` takes them; equal objects are one picture."""

    def score(self, items: Sequence[ScoreItem], seed: str) -> Sequence[float]:
        """One score an item; ``seed`` and an item's id decide the order of its facts."""

    def tokens(self, text: str) -> int:
        """The length of a response in tokens."""


class ModelScorer:
    """A reward model's own scores, ``batch_size`` responses a pass."""

    def __init__(self, model: RewardModel, batch_size: int = 32) -> None:
        self.model, self.batch_size = model, batch_size
        model.lmm.model.eval()

    @property
    def reads(self) -> Sequence[FactKind]:
        return self.model.info.facts

    def encode(self, pictures: Sequence[ImageInput]) -> Sequence[ImageInput]:
        return encode_pictures(self.model.lmm, self.model.renderer, pictures)

    def score(self, items: Sequence[ScoreItem], seed: str) -> Sequence[float]:
        return self.model.score(items, seed=seed, batch_size=self.batch_size).tolist()

    def tokens(self, text: str) -> int:
        return len(self.model.lmm.tokenizer(text, add_special_tokens=False)["input_ids"])


#: (subject, another record or None, one of its responses, generator, how many) -> sentences, if there are any
Source = Callable[[Subject, Subject | None, str, random.Random, int], Padding | None]


def subjects_of(records: Sequence[Preference]) -> list[Subject]:
    """The records' conversations, one for each id: several annotators of a pair are one conversation.

    Raises:
        DataError: records of one id that differ in picture, conversation or facts.
    """
    found: dict[str, Subject] = {}
    for record in records:
        texts = tuple(dict.fromkeys(response.text for response in record.responses))
        new = Subject(record.id, tuple(record.messages), texts, record.facts, record.image)
        old = found.setdefault(record.id, new)
        if replace(old, responses=texts) != new:
            rule = f"the records of id {record.id!r} differ in picture, conversation or facts"
            raise DataError(rule, key="id", mend="give each conversation its own id")
        found[record.id] = replace(old, responses=tuple(dict.fromkeys(old.responses + texts)))
    return list(found.values())


def donors(subjects: Sequence[Subject], seed: int) -> dict[str, Subject]:
    """For each subject with a picture another one of another picture, drawn by its id.

    One that was asked the same comes first: then its response answers this question too. Subjects without a
    picture have none; nor has any where all show one picture.
    """
    pictured = [subject for subject in subjects if subject.image is not None]
    same: dict[tuple[str, ...], list[Subject]] = {}
    for subject in pictured:
        same.setdefault(subject.asked, []).append(subject)
    found: dict[str, Subject] = {}
    for subject in pictured:
        rng = random.Random(step_seed(seed, "audit/donor", subject.id))
        for pool in (same[subject.asked], pictured):
            start = rng.randrange(len(pool))
            turned = (pool[(start + i) % len(pool)] for i in range(len(pool)))
            other = next((o for o in turned if o.picture != subject.picture), None)
            if other is not None:
                found[subject.id] = other
                break
    return found


def sentences_of(response: str) -> list[str]:
    """Its sentences by their stops; "e.g. this" counts as two."""
    return [text for text in _SENTENCE.split(response.strip()) if text]


def first_sentences(count: int) -> str:
    """What the change that keeps ``count`` sentences is called."""
    return "first sentence" if count == 1 else f"first {count} sentences"


def said_times(count: int) -> str:
    """What the change that says a response ``count`` times is called."""
    return "said twice" if count == 2 else f"said {count} times"


def measure(
    scorer: Scorer,
    part: Sequence[Subject],
    others: Mapping[str, Subject],
    settings: RewardAuditSettings,
    source: Source,
    root: str | None,
) -> Iterator[dict[str, Any]]:
    """One row for each response of the subjects in ``part``, in order; JSON values. ``root``: the image root.

    ``id`` and ``response`` (its index) name it; ``text``, ``image`` (its id), ``picture`` (where it is from),
    ``score``, ``tokens``; ``donor`` is the record that lent picture, facts and response, ``same_question``
    whether it was asked the same; ``changes`` maps a change's name to its ``score`` and ``tokens``;
    ``orders`` are the scores with the facts in further orders. A change that a response does not admit is
    not there.

    Sentences that are ``added`` are not among the facts that the model is shown; where some had to be taken
    away, ``against`` is the score of the response as it is with those that are left.

    Raises:
        DataError: a picture that cannot be read, or facts that the model reads and a record lacks.
    """
    shown = _Pictures(scorer, part, others, root)
    plain: list[ScoreItem] = []
    changes: list[list[Change]] = []
    rows: list[dict[str, Any]] = []
    for subject in part:
        other = others.get(subject.id)
        for index, text in enumerate(subject.responses):
            item = ScoreItem(subject.id, subject.messages, text, subject.facts, shown.own(subject))
            plain.append(item)
            changes.append(list(_changes(item, subject, other, index, shown, scorer, settings, source)))
            rows.append(_row(subject, index, other, scorer))
    asked = [change.item for some in changes for change in some]
    # true and false sentences of one response share theirs
    bases = {id(c.base): c.base for some in changes for c in some if c.base is not None}
    scored = scorer.score([*plain, *asked, *bases.values()], f"eval/{settings.seed}")
    scores, against = iter(scored), dict(zip(bases, scored[len(plain) + len(asked) :]))
    seeds = [f"order/{settings.seed}/{k}" for k in range(settings.fact_orders)] if scorer.reads else []
    for row in rows:
        row["score"] = next(scores)
    for row, some in zip(rows, changes):
        row["changes"] = {
            change.name: {"score": next(scores), "tokens": scorer.tokens(change.item.response)}
            | ({} if change.base is None else {"against": against[id(change.base)]})
            | change.more
            for change in some
        }
    orders = [scorer.score(plain, seed) for seed in seeds]
    for place, row in enumerate(rows):
        yield row | {"orders": [scored[place] for scored in orders]}


class _Pictures:
    """The pictures of some subjects, their donors' and grey ones, each encoded once."""

    def __init__(
        self, scorer: Scorer, part: Sequence[Subject], others: Mapping[str, Subject], root: str | None
    ) -> None:
        wanted = [*part, *(others[s.id] for s in part if s.id in others)]
        opened = open_pictures([s.image for s in wanted], root, [s.id for s in wanted])
        grey: dict[tuple[int, int], PILImage.Image] = {}
        for picture in opened[: len(part)]:
            if isinstance(picture, PILImage.Image):
                # of the same size, so that a processor makes as many tokens of it
                grey.setdefault(picture.size, PILImage.new("RGB", picture.size, GREY))
        encoded = scorer.encode([*opened, *grey.values()])
        self._own = dict(zip((s.picture for s in wanted), encoded))
        blank = dict(zip(grey, encoded[len(opened) :]))
        self._blank = {
            s.picture: blank[picture.size]
            for s, picture in zip(part, opened)
            if isinstance(picture, PILImage.Image)
        }

    def own(self, subject: Subject) -> ImageInput:
        return self._own[subject.picture]

    def blank(self, subject: Subject) -> ImageInput:
        return self._blank[subject.picture]


@dataclass(frozen=True)
class Change:
    """A response, its context or both made otherwise."""

    name: str
    item: ScoreItem
    #: what else its row says
    more: dict[str, Any]
    #: what it is compared with, where that is not the response as it was
    base: ScoreItem | None = None


def _changes(
    plain: ScoreItem,
    subject: Subject,
    other: Subject | None,
    index: int,
    shown: _Pictures,
    scorer: Scorer,
    settings: RewardAuditSettings,
    source: Source,
) -> Iterator[Change]:
    """Every change that this response admits."""

    def change(name: str, more: dict[str, Any] | None = None, **values: Any) -> Change:
        return Change(name, replace(plain, **values), more or {})

    if subject.image is not None:
        yield change(BLANK, image=shown.blank(subject))
    if other is not None:
        yield change(IMAGE, image=shown.own(other))
        if scorer.reads:
            yield change(FACTS, facts=other.facts)
            yield change(CONTEXT, image=shown.own(other), facts=other.facts)
        swapped = other.responses[index % len(other.responses)]
        if swapped != plain.response:
            yield change(SWAPPED if other.asked == subject.asked else ELSEWHERE, response=swapped)
    rng = random.Random(step_seed(settings.seed, "audit/padding", subject.id, index))
    padding = source(subject, other, plain.response, rng, settings.sentences)
    if padding is not None and (unshown := _unshown(subject.facts, padding, scorer.reads)) is not None:
        padding, facts = unshown
        base = replace(plain, facts=facts) if facts != subject.facts else None
        for name, added in ((TRUE, padding.true), (FALSE, padding.false)):
            longer = padded(plain.response, added)
            yield Change(name, replace(base or plain, response=longer), {"added": list(added)}, base)
    sentences = sentences_of(plain.response)
    for count in dict.fromkeys(settings.first_sentences):
        if len(sentences) > count:
            yield change(first_sentences(count), response=" ".join(sentences[:count]))
    for count in dict.fromkeys(settings.repeats):
        yield change(said_times(count), response=padded(plain.response, (plain.response,) * (count - 1)))


def _unshown(facts: Facts, padding: Padding, reads: Sequence[FactKind]) -> tuple[Padding, Facts] | None:
    """As many sentences as leave the model facts to read, and the facts without the true ones, or None."""
    if not reads:
        return padding, facts
    for count in range(len(padding.true), 0, -1):
        true, left = padding.true[:count], without(facts, padding.true[:count])
        if any(getattr(left, kind) for kind in reads):
            alike = all(getattr(left, kind) == getattr(facts, kind) for kind in reads)
            return Padding(true, padding.false[:count]), facts if alike else left
    return None


def _row(subject: Subject, index: int, other: Subject | None, scorer: Scorer) -> dict[str, Any]:
    same = None if other is None else other.asked == subject.asked
    image = None if subject.image is None else subject.image.id
    text = subject.responses[index]
    return {
        "id": subject.id, "response": index, "text": text, "image": image, "picture": subject.picture,
        "tokens": scorer.tokens(text),
        "donor": None if other is None else other.id, "same_question": same,
    }  # fmt: skip
