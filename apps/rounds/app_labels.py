"""The labels of a round from the annotation app: its samples go into a store, and its votes come out of it.

One store serves all rounds, with its accounts; a round's pairs have ids that begin with ``round-<number>/``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import and_, case, inspect, select
from sqlalchemy.exc import DBAPIError

from align.config import RoundsSettings
from apps.annotate.assign import WORK
from apps.annotate.errors import StoreError
from apps.annotate.exports import records
from apps.annotate.imports import Wish, import_pairs
from apps.annotate.store import Store, open_store, parse_url, shown
from apps.annotate.tables import pairs
from data.convert import Source
from data.errors import DataError
from data.jsonl import read_records, write_records
from data.schema import Preference

#: the round's samples as they went into the store
ASKED = "to_label.jsonl"


@dataclass(frozen=True)
class Votes:
    """How far the people are with a round's pairs."""

    pairs: int
    #: with all their votes, or decided by an admin
    done: int

    def enough(self, share: float) -> bool:
        """Whether ``share`` of the pairs are done; what rounding adds to that product is no pair."""
        return self.done >= math.ceil(share * self.pairs - 1e-9)


def resolved(store: str) -> str:
    """A store's URL as it is from any directory, without a password. Raises StoreError."""
    url = parse_url(store)
    if url.get_backend_name() != "sqlite":
        return shown(url)
    return f"sqlite:///{Path(str(url.database)).resolve()}"


def check_store(store: str, images: str | None) -> None:
    """That the store can be opened, where there is one, and is of the image root ``images``; makes none.

    Raises:
        StoreError: a store that cannot be reached or opened. DataError: another image root.
    """
    if not _is_there(store):
        return
    opened = open_store(store)
    try:
        found = opened.setting("images")
    finally:
        opened.close()
    wanted = None if images is None else str(Path(images).resolve())
    if wanted is not None and found not in (None, wanted):
        rule = f"the image root of {resolved(store)} is {found}, and prompts.images is {wanted}"
        raise DataError(rule, key="labels.store", mend="name another store, or give the same root")


def _is_there(store: str) -> bool:
    """Whether tables lie there: an empty database becomes a store when the first samples are asked for."""
    url = parse_url(store)
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        return False
    opened = Store(url)
    try:
        return bool(inspect(opened.engine).get_table_names())
    except DBAPIError as error:
        reason = " ".join(str(error.orig).split())
        raise StoreError(f"{shown(url)}: cannot be used ({reason}); check labels.store") from None
    finally:
        opened.close()


def collect(settings: RoundsSettings, number: int, folder: Path) -> Votes:
    """Put the round's samples into the store unless they are there, and write ``choices.jsonl`` once enough
    of them have their votes: decisions of admins, and majorities where there is none.

    Raises:
        StoreError: a store that cannot be opened. DataError: samples of which the store knows others.
    """
    labels = settings.labels
    assert labels.store is not None
    store = open_store(labels.store, create=True)
    try:
        own = _ask(settings, store, number, folder)
        votes = _count(store, number, own)
        if votes.enough(labels.share):
            write_records(folder / "choices.jsonl", _chosen(store, number, own))
        return votes
    finally:
        store.close()


def _ask(settings: RoundsSettings, store: Store, number: int, folder: Path) -> set[str]:
    """Put the samples into the store; returns their ids there."""
    file, labels = folder / ASKED, settings.labels
    if not file.exists():
        samples = read_records(folder / "sample/samples.jsonl", "preference", strict=True)
        named = [one.model_copy(update={"id": _prefix(number) + one.id}) for one in samples]
        write_records(file, named)
    images = settings.prompts.images
    source = Source(file, images=None if images is None else Path(images), kind="preference")
    wish = Wish(labels.votes, labels.overlap, max(labels.votes, labels.overlap_votes), seed=settings.seed)
    import_pairs(store, source, WORK, wish, strict=True)
    return {record.id for record in read_records(file, "preference", strict=True)}


def _count(store: Store, number: int, own: set[str]) -> Votes:
    done = case((and_(pairs.c.open == 1, pairs.c.adjudicated.is_(None)), 0), else_=1)
    asked = and_(pairs.c.role == WORK, pairs.c.id.startswith(_prefix(number), autoescape=True))
    with store.read() as connection:
        # other rounds of this number may lie there, of another run
        found = [row[1] for row in connection.execute(select(pairs.c.id, done).where(asked)) if row[0] in own]
    return Votes(len(found), sum(found))


def _chosen(store: Store, number: int, own: set[str]) -> Iterator[Preference]:
    """The round's records with their choices, under the ids that they were sampled with."""
    prefix = _prefix(number)
    with store.read(snapshot=True) as connection:
        for record in records(connection, "adjudicated", frozenset()):
            if record.id in own:
                yield record.model_copy(update={"id": record.id.removeprefix(prefix)})


def _prefix(number: int) -> str:
    return f"round-{number}/"
