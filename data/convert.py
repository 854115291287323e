"""A file in one format to a file in another, one record at a time: memory does not grow with the file."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import BaseModel

from data.errors import DataError, Pairs, Row
from data.files import replacing_bytes, to_json, write_texts
from data.formats.base import Format, OriginalIds, unique_ids
from data.formats.llava_rlhf import with_captions
from data.images import image_bytes, inspect_image
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
    #: records with a picture that the captions know, and that they do not
    captioned: int = 0
    uncaptioned: int = 0


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
    #: pictures given by address, or as bytes, go into these folders, which lie in the image root if any
    fetch: Path | None = None
    save: Path | None = None

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
            pairs = _captioned(pairs, self.captions, self.path, outcome)
        if self.prompts is not None:
            pairs = as_prompts(pairs, self.prompts)
        root = self.images or self.fetch or self.save
        if self.fetch is not None:
            pairs = moved(pairs, fetched, self.fetch, root)
        if self.save is not None:
            pairs = moved(pairs, saved, self.save, root)
        return existing(pairs, self.images) if self.images is not None else pairs

    def _seen(self, pairs: Pairs[Any], outcome: Outcome) -> Pairs[Any]:
        assert self.format is not None
        for row, got in pairs:
            # a model that keeps what it does not know loses nothing
            keeps = isinstance(got, BaseModel) and type(got).model_config.get("extra") == "allow"
            if self.format.holder == "rows" and isinstance(row.raw, dict) and not keeps:
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


def moved(
    pairs: Pairs[Any], place: Callable[[Image, Path], Path | None], folder: Path, root: Path | None
) -> Pairs[Any]:
    """Records with the file, below ``root``, that ``place`` puts a picture into; None: the picture stays.

    Raises:
        DataError: ``folder`` does not lie in ``root``.
    """
    base = (root or folder).resolve()
    if not folder.resolve().is_relative_to(base):
        mend = "give a folder inside the image root"
        raise DataError(f"it does not lie in the image root {base}", file=str(folder), mend=mend)
    for row, got in pairs:
        image = getattr(got, "image", None)
        if isinstance(got, DataError) or not isinstance(image, Image):
            yield row, got
            continue
        try:
            path = place(image, folder)
        except DataError as error:
            yield row, row.locate(error)
            continue
        if path is not None:
            name = path.resolve().relative_to(base).as_posix()
            got = got.model_copy(update={"image": Image(id=image.id, path=name)})
        yield row, got


def fetched(image: Image, folder: Path) -> Path | None:
    """The file that a picture given by address was downloaded to."""
    if image.url is None:
        return None
    image_bytes(image, None, allow_urls=True, cache=folder)
    return cached(image.url, folder)


def saved(image: Image, folder: Path) -> Path | None:
    """The file that holds a picture given as bytes, named by their hash."""
    if image.data is None:
        return None
    kind = inspect_image(image, None).format.lower()
    path = folder / f"{hashlib.sha256(image.data).hexdigest()}.{'jpg' if kind == 'jpeg' else kind}"
    if not path.exists():
        with replacing_bytes(path) as part:
            part.write_bytes(image.data)
    return path


def _captioned(
    pairs: Pairs[Any], captions: Mapping[str, list[str]], path: Path, outcome: Outcome
) -> Pairs[Any]:
    for row, got in pairs:
        if isinstance(got, DataError) or not isinstance(getattr(got, "image", None), Image):
            yield row, got
            continue
        known = with_captions(got, captions) if hasattr(got, "facts") else None
        outcome.captioned += known is not None
        outcome.uncaptioned += known is None
        yield row, known or got
    if outcome.uncaptioned and not outcome.captioned:
        rule = f"no caption for any of the {outcome.uncaptioned} images"
        mend = "use the captions of these images (keys are image names)"
        raise DataError(rule, file=str(path), key="captions", mend=mend)


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
