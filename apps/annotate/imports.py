"""Pairs into the store, from any format of ``align data``: streaming, and all of a file or nothing."""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, case, delete, func, insert, select, update

from apps.annotate.assign import GOLD, QUALIFICATION, WORK
from apps.annotate.errors import StoreError
from apps.annotate.store import Store, get_setting, put_setting
from apps.annotate.tables import pairs
from data.convert import Source, Track
from data.errors import DataError, Pairs
from data.jsonl import keep
from data.rows import read_rows
from data.schema import Preference

Order = Literal["file", "random", "uncertain"]
#: rows of one transaction, so that votes get their turn while a file is read
BATCH = 1000
#: behind all pairs with scores
_UNSCORED = 1e15


@dataclass(frozen=True)
class Wish:
    """How many votes the pairs of a file get, and in which order they are asked for."""

    #: votes a pair
    labels: int = 1
    #: share of the pairs that get ``overlap_labels`` instead, so that agreement can be measured
    overlap: float = 0.1
    overlap_labels: int = 3
    #: of the file; random; or the pairs first on whose responses a reward model's scores differ least
    order: Order = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.labels <= 100 or not self.labels <= self.overlap_labels <= 100:
            mend = "give 1 to 100, and no fewer for the overlap"
            raise DataError(f"{self.labels} and {self.overlap_labels} votes a pair", key="labels", mend=mend)
        if not 0 <= self.overlap <= 1:
            raise DataError(f"{self.overlap} is not a share", key="overlap", mend="give 0..1")


@dataclass
class Imported:
    """What became of a file's records."""

    added: int = 0
    #: in the store already, the same in all that labelers see
    known: int = 0
    #: of two equal responses: nothing to compare
    identical: int = 0
    #: without scores, where the order goes by them
    unscored: int = 0


def import_pairs(
    store: Store,
    source: Source,
    role: str = WORK,
    wish: Wish | None = None,
    *,
    scores: dict[str, tuple[float, float]] | None = None,
    limit: int | None = None,
    max_bad: float = 0.01,
    strict: bool = False,
    rejects: Path | None = None,
    track: Track | None = None,
) -> Imported:
    """Add the preferences of a file as pairs to compare, or as ``gold`` or ``qualification`` items.

    Of work pairs the choices that the file may hold are left out. A file given a second time adds nothing.
    Bad records are dealt with as ``data.jsonl.keep`` says. Nobody is given one of the pairs before all of
    them are there. ``scores``: id -> a reward model's score of each response, else those in ``meta.scores``.

    Raises:
        DataError: too many bad records; an id that the store knows with other contents; other images than
            the project's. StoreError: another import at the same time. The store stays as it was.
    """
    if role not in (WORK, GOLD, QUALIFICATION):
        raise DataError(f"unknown role {role!r}", key="role", mend=f"use {WORK}, {GOLD} or {QUALIFICATION}")
    wish, outcome = wish or Wish(), Imported()
    if rejects is not None:
        store.check_output(rejects)
    _own_images(store, source.images)
    checked = _checked(source.pairs(), role, source.images, outcome)
    records = keep(checked, limit=limit, max_bad=max_bad, strict=strict, rejects=rejects)
    staged = f"new-{secrets.token_hex(4)}"

    def clear(connection: Connection) -> None:
        # what an import that was killed left behind, too
        connection.execute(delete(pairs).where(pairs.c.role.like("new-%")))

    store.write(clear)

    def show(connection: Connection) -> None:
        still = case((pairs.c.votes < pairs.c.wanted, 1), else_=0) if role == WORK else 0
        ready = update(pairs).where(pairs.c.role == staged).values(role=role, open=still)
        if connection.execute(ready).rowcount != outcome.added:
            rule = "another import began meanwhile, and took the pairs of this one for left behind"
            raise StoreError(f"{source.path}: {rule}; nothing was added, import it again")

    rows = _rows(track(records) if track else records, role, wish, scores, outcome, _last(store))
    try:
        while batch := list(islice(rows, BATCH)):
            added = store.write(partial(_add, batch=batch, role=role, staged=staged))
            outcome.added += added
            outcome.known += len(batch) - added
        if not outcome.added + outcome.known + outcome.identical:
            mend = "give two responses a prompt, such as align sample writes (align data inspect FILE)"
            raise DataError("no preferences in it", file=str(source.path), mend=mend)
        store.write(show)
    except BaseException:
        store.write(clear)
        raise
    return outcome


def _own_images(store: Store, images: Path | None) -> None:
    """Remember the image root, which is one for all pairs."""
    if images is None:
        return
    wanted = str(images.resolve())

    def work(connection: Connection) -> None:
        found = get_setting(connection, "images")
        if found not in (None, wanted):
            rule = f"the project's image root is {found}, not {wanted}"
            raise DataError(rule, key="images", mend="give the same root for all pairs of a store")
        put_setting(connection, "images", wanted)

    store.write(work)


def _last(store: Store) -> int:
    with store.read() as connection:
        return int(connection.scalar(select(func.max(pairs.c.n))) or 0)


def _checked(found: Pairs[Any], role: str, images: Path | None, outcome: Imported) -> Pairs[Preference]:
    """The pairs that can be shown; what cannot becomes an error at its place."""
    for row, got in found:
        if isinstance(got, DataError):
            yield row, got
        elif error := _fault(got, role, images):
            yield row, row.locate(error)
        elif got.responses[0].text == got.responses[1].text:
            outcome.identical += 1
        else:
            yield row, got


def _fault(record: Any, role: str, images: Path | None) -> DataError | None:
    if not isinstance(record, Preference):
        mend = "give preferences: two responses a prompt, such as align sample writes"
        return DataError(f"a {record.kind!r} record", key="kind", mend=mend)
    if len(record.responses) != 2:
        rule = f"{len(record.responses)} responses, and a labeler compares two"
        return DataError(rule, key="responses", mend="sample two a prompt, or split the record into pairs")
    if record.image is not None and record.image.url is not None:
        mend = "fetch it first (align data convert --fetch DIR)"
        return DataError("the picture is given by address", key="image.url", mend=mend)
    if record.image is not None and record.image.path is not None and images is None:
        mend = "give the image root (--images DIR)"
        return DataError("the picture is given by path, and there is no image root", key="image", mend=mend)
    if role != WORK and not record.choices:
        return DataError(f"a {role} item without choices", key="choices", mend="say which response is better")
    return None


def _rows(
    records: Iterable[Preference],
    role: str,
    wish: Wish,
    scores: dict[str, tuple[float, float]] | None,
    outcome: Imported,
    start: int,
) -> Iterator[dict[str, Any]]:
    for place, record in enumerate(records, start):
        draw = random.Random(f"{wish.seed}/{record.id}")
        overlap, shuffled = draw.random() < wish.overlap, draw.random()
        rank = shuffled if wish.order == "random" else float(place)
        if wish.order == "uncertain":
            found = _two(record.meta.get("scores")) if scores is None else scores.get(record.id)
            outcome.unscored += found is None
            rank = abs(found[0] - found[1]) if found is not None else _UNSCORED + place
        kept: dict[str, Any] = {"annotator": None} | ({"choices": {}} if role == WORK else {})
        yield {
            "id": record.id,
            "key": secrets.token_hex(12),
            "record": record.model_copy(update=kept).model_dump_json(),
            "rank": rank,
            "wanted": wish.overlap_labels if overlap else wish.labels,
            "votes": 0,
            "open": 0,
        }


def _two(scores: Any) -> tuple[float, float] | None:
    """Two finite numbers, or None."""
    if not isinstance(scores, list) or len(scores) != 2:
        return None
    if not all(type(x) in (int, float) and math.isfinite(x) for x in scores):
        return None
    return float(scores[0]), float(scores[1])


def _add(connection: Connection, batch: list[dict[str, Any]], role: str, staged: str) -> int:
    """Insert what is new of a batch; returns how many."""
    query = select(pairs.c.id, pairs.c.role, pairs.c.record)
    found = connection.execute(query.where(pairs.c.id.in_([row["id"] for row in batch])))
    known = {row.id: (row.role, row.record) for row in found}
    new = []
    for row in batch:
        there = known.setdefault(row["id"], (staged, row["record"]))
        if there[1] != row["record"] or there[0] not in (role, staged):
            rule = f"the store knows {row['id']!r} with other contents, or in another role"
            raise DataError(rule, key="id", mend="give the pair another id, or use another store")
        if there[1] is row["record"]:
            new.append(row | {"role": staged})
    if new:
        connection.execute(insert(pairs), new)
    return len(new)


def read_scores(path: Path) -> dict[str, tuple[float, float]]:
    """id -> scores of the two responses, from rows ``{"id": ..., "scores": [s0, s1]}``. Raises DataError."""
    found = {}
    for row, value in read_rows(path):
        if isinstance(value, DataError):
            raise value
        scores = _two(value.get("scores"))
        if not isinstance(value.get("id"), str) or scores is None:
            mend = 'write {"id": "...", "scores": [s0, s1]}, finite numbers in the order of the responses'
            raise row.locate(DataError("not the scores of a pair", mend=mend))
        found[value["id"]] = scores
    return found


def images_of(store: Store) -> Path | None:
    """The project's image root. Raises StoreError where it is gone."""
    found = store.setting("images")
    if found is not None and not Path(found).is_dir():
        raise StoreError(f"{found}: the project's image root is not there; give it by --images")
    return None if found is None else Path(found)
