"""A model in this process as the runner's ``generate``: fixed chunks, a picture opened and encoded once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from align.config import GenerateSettings
from align.generate import Item, generate
from align.models.lmm import Lmm
from align.pictures import PictureKey, encode_pictures, open_picture, picture_key
from align.render import ImageInput, Renderer
from align.schedule import step_seed
from align.yes_no import probabilities
from data.jsonl import DataError
from data.schema import Message, Response
from evals.journal import Journal
from evals.runner import Benchmark, EvalItem, YesNo

log = logging.getLogger(__name__)


def of_benchmark(journal: Journal | None, name: str) -> dict[str, float]:
    """P(yes) of a benchmark's questions by id."""
    rows = journal.rows if journal is not None else []
    return {row["id"]: row["p_yes"] for row in rows if row["benchmark"] == name}


@dataclass(frozen=True)
class Chunk:
    """Items that are answered together."""

    items: list[EvalItem]
    #: the benchmark, where the first token's probabilities answer them
    by_token: str | None = None


class Answerer:
    """A ``generate`` callable for the runner.

    A sampled answer depends on the batch in which it is drawn. So the benchmarks' items are cut into fixed
    chunks, each with a seed of its own, and a chunk is always answered as a whole: a resumed run gives the
    answers of an unbroken one, wherever it was cut (with the same readable pictures). Each picture of a chunk
    is opened and encoded once.

    With ``p_yes`` yes/no answers are not generated: P(yes) goes there, and the likelier is the answer.
    """

    def __init__(
        self,
        lmm: Lmm,
        renderer: Renderer,
        how: GenerateSettings,
        images: str | None,
        seed: int,
        benchmarks: Sequence[Benchmark],
        p_yes: Journal | None = None,
    ) -> None:
        self.lmm, self.renderer, self.how, self.images, self.seed = lmm, renderer, how, images, seed
        self.p_yes = p_yes
        #: items of a chunk
        self.size = how.batch_size * 4
        self._chunks: list[Chunk] = []
        #: (id, question) -> its chunk
        self._place: dict[tuple[str, str], int] = {}
        for benchmark in benchmarks:
            for items, by_token in self._parts(benchmark):
                for start in range(0, len(items), self.size):
                    chunk = Chunk(items[start : start + self.size], by_token)
                    self._place |= {(item.id, item.question): len(self._chunks) for item in chunk.items}
                    self._chunks.append(chunk)
        #: the chunk answered last
        self._last: tuple[int, dict[str, str]] = (-1, {})

    def opened(self, items: Sequence[EvalItem]) -> dict[PictureKey, ImageInput]:
        """Each picture once; None for one that cannot be read, with a warning for each item that shows it."""
        found: dict[PictureKey, ImageInput] = {}
        why: dict[PictureKey, DataError] = {}
        for item in items:
            key = picture_key(item.image)
            if key not in found:
                try:
                    found[key] = open_picture(item.image, self.images, item.id)
                except DataError as error:
                    found[key], why[key] = None, error
            if key in why:
                log.warning("no answer to %s: %s", item.id, why[key])
        return found

    def _parts(self, benchmark: Benchmark) -> list[tuple[list[EvalItem], str | None]]:
        items = benchmark.items
        if self.p_yes is None or not isinstance(benchmark, YesNo):
            return [(items, None)]
        ids = {name for group in benchmark.yes_no.values() for name, _, _ in group}
        asked = [item for item in items if item.id in ids]
        return [([item for item in items if item.id not in ids], None), (asked, benchmark.name)]

    def __call__(self, items: list[EvalItem]) -> dict[str, str]:
        answers = {}
        for item in items:
            place = self._place[item.id, item.question]
            if place != self._last[0]:
                self._last = place, self.answer(self._chunks[place])
            if item.id in self._last[1]:
                answers[item.id] = self._last[1][item.id]
        return answers

    def answer(self, chunk: Chunk) -> dict[str, str]:
        """Responses to one whole chunk by id; none where the picture cannot be read, which is told."""
        opened = self.opened(chunk.items)
        items = [item for item in chunk.items if opened[picture_key(item.image)] is not None]
        if not items:
            return {}
        pictures = [opened[picture_key(item.image)] for item in items]
        encoded = encode_pictures(self.lmm, self.renderer, pictures)
        asked: list[Item] = [
            ([Message(role="user", content=item.question)], image) for item, image in zip(items, encoded)
        ]
        if chunk.by_token is not None and self.p_yes is not None:
            found = probabilities(self.lmm, self.renderer, asked, self.how.batch_size)
            # after a kill some may stand there already
            known = of_benchmark(self.p_yes, chunk.by_token)
            rows = ({"benchmark": chunk.by_token, "id": i.id, "p_yes": p} for i, p in zip(items, found))
            self.p_yes.add(row for row in rows if row["id"] not in known)
            return {i.id: "Yes" if p > 0.5 else "No" for i, p in zip(items, found)}
        seed = step_seed(self.seed, "eval", chunk.items[0].id)
        answers = generate(self.lmm, self.renderer, asked, self.how, seed=seed)
        return {i.id: a.text for i, a in zip(items, answers, strict=True) if isinstance(a, Response)}
