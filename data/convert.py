"""A file in one format to a file in another, one record at a time: memory does not grow with the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from data.errors import DataError, Pairs, Row
from data.files import to_json, write_texts
from data.formats.base import Format, OriginalIds, unique_ids
from data.formats.llava_rlhf import with_captions
from data.images import image_bytes
from data.jsonl import dump, keep, no_duplicates, record_pairs
from data.load import existing, of_kind
from data.prompts import as_prompts
from data.schema import Image, LengthClass
from data.urls import cached

#: wraps an iteration to show how far it is
Track: TypeAlias = Callable[[Iterable[Any]], Iterable[Any]]
PARQUET = ".parquet"


@dataclass
class Outcome:
    """What a conversion did."""

    written: int = 0
    bad: int = 0
    #: records of other kinds than the wanted one, by kind
    other: Counter[str] = field(default_factory=Counter)
    #: keys of the source's rows that its format does not carry over, and in how many rows
    spare: Counter[str] = field(default_factory=Counter)
    #: fields that the target does not hold in full, and in how many records
    changed: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Source:
    """A file to read: None as format is the project's own layout."""

    path: Path
    format: Format | None = None
    #: the only kind wanted, of our own files
    kind: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    #: the image root; pictures must be there and begin as pictures
    images: Path | None = None
    #: conversations become prompts of this length class: their first questions
    prompts: LengthClass | None = None
    #: captions by image, which become facts
    captions: Mapping[str, list[str]] | None = None
    #: pictures given by address are fetched into this folder, which lies in the image root if there is one
    fetch: Path | None = None

    def pairs(self, outcome: Outcome | None = None) -> Pairs[Any]:
        """The records or errors of the file, with unique ids."""
        outcome = outcome or Outcome()
        if self.format is not None:
            pairs = unique_ids(self._seen(self.format.pairs(self.path, **self.options), outcome))
        else:
            pairs = no_duplicates(record_pairs(self.path))
            if self.kind is not None:
                pairs = of_kind(pairs, self.kind, outcome.other)
        if self.captions is not None:
            pairs = _captioned(pairs, self.captions)
        if self.prompts is not None:
            pairs = as_prompts(pairs, self.prompts)
        if self.fetch is not None:
            pairs = fetched(pairs, self.fetch, self.images or self.fetch)
        return existing(pairs, self.images) if self.images is not None else pairs

    def _seen(self, pairs: Pairs[Any], outcome: Outcome) -> Pairs[Any]:
        assert self.format is not None
        for row, got in pairs:
            if self.format.holder == "rows" and isinstance(row.raw, dict):
                outcome.spare.update(row.raw.keys() - self.format.keys)
            yield row, got


def convert(
    source: Source,
    path: Path,
    target: Format | None,
    *,
    limit: int | None = None,
    strict: bool = False,
    max_bad: float = 0.01,
    rejects: Path | None = None,
    track: Track | None = None,
) -> Outcome:
    """Write the records of ``source`` to ``path`` (None: our own layout), completely or not at all.

    Bad records, those that the target cannot hold among them, are dealt with as ``data.jsonl.keep`` says.

    Raises:
        DataError: too many bad records, none at all, or a file that cannot be read.
    """
    outcome = Outcome()
    lines = target is None or target.lines or path.suffix == ".jsonl"
    pairs = _counted(_texts(source.pairs(outcome), target, outcome, lines), outcome)
    kept: Iterable[str] = keep(pairs, limit=limit, strict=strict, max_bad=max_bad, rejects=rejects)
    outcome.written = write_texts(path, _some(track(kept) if track else kept, source.path), lines=lines)
    return outcome


def convert_rows(
    source: Source,
    target: Format,
    write: Callable[[Iterable[dict[str, Any]]], int],
    *,
    change: Callable[[Iterable[dict[str, Any]]], Iterable[dict[str, Any]]] = iter,
    limit: int | None = None,
    strict: bool = False,
    max_bad: float = 0.01,
    rejects: Path | None = None,
    track: Track | None = None,
) -> Outcome:
    """The same for targets that take rows, such as Parquet; ``change`` may put pictures into them."""
    outcome = Outcome()
    pairs = _counted(_rows(source.pairs(outcome), target, outcome), outcome)
    kept: Iterable[Any] = keep(pairs, limit=limit, strict=strict, max_bad=max_bad, rejects=rejects)
    outcome.written = write(change(_some(track(kept) if track else kept, source.path)))
    return outcome


def fetched(pairs: Pairs[Any], folder: Path, root: Path) -> Pairs[Any]:
    """Records whose picture is an address, with the file that it was fetched into, below ``root``.

    Raises:
        DataError: ``folder`` does not lie in ``root``.
    """
    if not folder.resolve().is_relative_to(root.resolve()):
        mend = "give a folder inside the image root"
        raise DataError(
            f"it does not lie in the image root {root}", file=str(folder), key="--fetch", mend=mend
        )
    for row, got in pairs:
        image = getattr(got, "image", None)
        if isinstance(got, DataError) or not isinstance(image, Image) or image.url is None:
            yield row, got
            continue
        try:
            image_bytes(image, None, allow_urls=True, cache=folder)
        except DataError as error:
            yield row, row.locate(error)
            continue
        path = cached(image.url, folder).resolve().relative_to(root.resolve())
        yield row, got.model_copy(update={"image": Image(id=image.id, path=path.as_posix())})


def _captioned(pairs: Pairs[Any], captions: Mapping[str, list[str]]) -> Pairs[Any]:
    for row, got in pairs:
        yield row, got if isinstance(got, DataError) else with_captions(got, captions) or got


def _some(records: Iterable[Any], path: Path) -> Iterator[Any]:
    """Passes them on. Raises DataError when there are none, ahead of anything that is written."""
    none = True
    for record in records:
        none = False
        yield record
    if none:
        raise DataError("no record to convert", file=str(path), mend="check --from (align data inspect)")


def _counted(pairs: Pairs[Any], outcome: Outcome) -> Pairs[Any]:
    for row, got in pairs:
        outcome.bad += isinstance(got, DataError)
        yield row, got


def _texts(pairs: Pairs[Any], target: Format | None, outcome: Outcome, lines: bool) -> Pairs[str]:
    """Each record as the JSON text that stands for it in the target, or why it cannot."""
    found = _rows(pairs, target, outcome) if target is not None else _dumped(pairs)
    for row, got in found:
        if not isinstance(got, DataError):
            try:
                text = to_json(got, row.file, indent=None if lines else 2)
            except DataError as error:
                yield row, row.locate(error)
                continue
            yield row, text
            continue
        yield row, got


def _dumped(pairs: Pairs[Any]) -> Pairs[dict[str, Any]]:
    for row, got in pairs:
        yield row, got if isinstance(got, DataError) else dump(got)


def _rows(pairs: Pairs[Any], target: Format, outcome: Outcome) -> Pairs[dict[str, Any]]:
    """Each record as the target's row, under its original id; fields that do not come back are counted."""
    ids = OriginalIds()
    for row, got in pairs:
        if isinstance(got, DataError):
            yield row, got
            continue
        try:
            made = target.to_row(got)
            outcome.changed.update(_lost(got, made, target, row))
            name = ids.of(got)
            yield row, made | {"id": name} if name is not None and "id" in made else made
        except DataError as error:
            yield row, row.locate(error)


def _lost(record: Any, made: dict[str, Any], target: Format, row: Row) -> set[str]:
    """Fields that are another when the row is read back."""
    if target.parse is None or not hasattr(record, "kind"):
        return set()
    before, after = dump(record), dump(target.parse(row, made))
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
