"""One way for every stage to get its records: our own JSONL or a foreign format, checked, with facts."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

from data.formats import choose
from data.formats.base import unique_ids
from data.formats.llava_rlhf import add_captions, read_captions
from data.formats.pope import PopeItem
from data.images import image_path
from data.jsonl import DataError, Pairs, Row, keep, no_duplicates, record_pairs
from data.schema import RECORDS, AnyRecord, Image


def load(
    path: str | list[str] | Path,
    want: str,
    *,
    format: str | None = None,
    images: str | Path | None = None,
    captions: str | Path | None = None,
    limit: int | None = None,
    max_bad: float = 0.01,
    strict: bool = False,
    rejects: str | Path | None = None,
) -> list[AnyRecord]:
    """All records of kind ``want`` in one file or several (concatenated), in order.

    ``format`` names a foreign format (``data.formats``); None reads schema JSONL, where records of
    other kinds are passed over. Every image file must exist under ``images``; it is not decoded.
    ``captions`` (image_to_caption.json) adds facts. Bad records are dealt with as ``data.jsonl.keep``
    says. Raises DataError, also when nothing is left, or when images are paths and ``images`` is None.
    """
    if want not in RECORDS:
        raise DataError(f"unknown kind {want!r}", key="want", mend=f"use one of {', '.join(RECORDS)}")
    paths: list[str | Path] = [path] if isinstance(path, str | Path) else list(path)
    if not paths:
        raise DataError("no file is given", key="path", mend="name at least one")
    other: Counter[str] = Counter()
    pairs = _pairs(paths, want, format, other)
    checked = existing(pairs, images)
    records: list[Any] = list(keep(checked, limit=limit, strict=strict, max_bad=max_bad, rejects=rejects))
    if not records:
        held = ", ".join(f"{n} {kind}" for kind, n in other.items()) or "nothing"
        mend = "give a file of that kind, or name its format (align data inspect FILE)"
        raise DataError(f"no {want!r} records (found: {held})", file=", ".join(map(str, paths)), mend=mend)
    if captions is not None and want != "verdict":
        return list(add_captions(records, read_captions(captions), str(captions)))
    return records


def _pairs(paths: list[str | Path], want: str, format: str | None, other: Counter[str]) -> Pairs[AnyRecord]:
    if format is not None:
        chosen = choose(format, want)
        return unique_ids(chain.from_iterable(chosen.pairs(p) for p in paths))
    found = no_duplicates(chain.from_iterable(record_pairs(p) for p in paths))
    return of_kind(found, want, other)


def of_kind(pairs: Pairs[AnyRecord], want: str, other: Counter[str]) -> Pairs[AnyRecord]:
    """Pass over the records of other kinds than ``want``, counting them by kind in ``other``."""
    for row, got in pairs:
        if isinstance(got, DataError) or got.kind == want:
            yield row, got
        else:
            other[got.kind] += 1


def existing(pairs: Pairs[Any], images: str | Path | None) -> Pairs[Any]:
    """Turn records whose image file is missing, or outside the root, into errors at their place.

    Raises DataError at the first image path when ``images`` is None. URLs and bytes pass.
    """
    known: dict[str, DataError | None] = {}
    for row, got in pairs:
        image = None if isinstance(got, DataError) else getattr(got, "image", None)
        if isinstance(got, PopeItem):
            image = Image(id=got.image, path=got.image)
        path = getattr(image, "path", None)
        if image is None or path is None:
            yield row, got
            continue
        if images is None:
            # not one record's fault: no record could pass
            rule = f"the records name images by path ({path!r}), and no image root is given"
            raise row.locate(DataError(rule, key="images", mend="set images to the folder that holds them"))
        if path not in known:
            try:
                image_path(image, images)
                known[path] = None
            except DataError as error:
                known[path] = error
        yield row, at_row(row, known[path]) or got


def at_row(row: Row, found: DataError | None) -> DataError | None:
    """A copy of an error, placed at ``row``: one image's error is told for each record that shows it."""
    return None if found is None else row.locate(DataError(found.rule, key=found.key, mend=found.mend))
