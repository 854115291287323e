"""One way for every stage to get its records: our own JSONL or a foreign format, checked, with facts."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

from data.facts import read_captions
from data.formats import choose
from data.formats.base import unique_ids
from data.formats.llava_rlhf import add_captions
from data.formats.pope import PopeItem
from data.images import check_image
from data.jsonl import DataError, Pairs, Rejects, Row, keep, no_duplicates, record_pairs
from data.schema import RECORDS, AnyRecord, Image


def load(
    path: str | list[str] | Path,
    want: str,
    *,
    format: str | None = None,
    images: str | Path | None = None,
    captions: str | Path | None = None,
    options: dict[str, str] | None = None,
    limit: int | None = None,
    max_bad: float = 0.01,
    strict: bool = False,
    rejects: str | Path | Rejects | None = None,
) -> list[AnyRecord]:
    """All records of kind ``want`` in one file or several (concatenated), in order.

    ``format`` names a foreign format (``data.formats``), ``options`` are its own (``Format.options``); None
    reads schema JSONL, where records of other kinds are passed over. Every image must be given by bytes or
    by a file under ``images``, and its header be an image's; it is not decoded. ``captions``
    (image_to_caption.json, or COCO's captions) adds facts. Bad records are dealt with as
    ``data.jsonl.keep`` says. Raises DataError, also when nothing is left, or when images are paths and
    ``images`` is None.
    """
    if want not in RECORDS:
        raise DataError(f"unknown kind {want!r}", key="want", mend=f"use one of {', '.join(RECORDS)}")
    paths: list[str | Path] = [path] if isinstance(path, str | Path) else list(path)
    if not paths:
        raise DataError("no file is given", key="path", mend="name at least one")
    other: Counter[str] = Counter()
    pairs = _pairs(paths, want, format, other, options or {})
    checked = existing(pairs, images)
    records: list[Any] = list(keep(checked, limit=limit, strict=strict, max_bad=max_bad, rejects=rejects))
    if not records:
        held = ", ".join(f"{n} {kind}" for kind, n in other.items()) or "nothing"
        mend = "give a file of that kind, or name its format (align data inspect FILE)"
        raise DataError(f"no {want!r} records (found: {held})", file=", ".join(map(str, paths)), mend=mend)
    if captions is not None and want != "verdict":
        return list(add_captions(records, read_captions(captions), str(captions)))
    return records


def _pairs(
    paths: list[str | Path], want: str, format: str | None, other: Counter[str], options: dict[str, str]
) -> Pairs[AnyRecord]:
    if format is not None:
        chosen = choose(format, want)
        return unique_ids(chain.from_iterable(chosen.pairs(p, **options) for p in paths))
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
    """Turn records whose image cannot be had into errors at their place (see ``data.images.check_image``).

    Raises DataError at the first image path when ``images`` is None.
    """
    # of good pictures a hash is kept: there may be hundreds of thousands
    good: set[int] = set()
    bad: dict[str, DataError] = {}
    for row, got in pairs:
        image = None if isinstance(got, DataError) else getattr(got, "image", None)
        if isinstance(got, PopeItem):
            image = Image(id=got.image, path=got.image)
        if not isinstance(image, Image):
            yield row, got
            continue
        if image.path is not None and images is None:
            # not one record's fault: no record could pass
            rule = f"the records name images by path ({image.path!r}), and no image root is given"
            raise row.locate(DataError(rule, key="images", mend="set images to the folder that holds them"))
        if image.path is None:
            found = _fault(image, images)
        elif hash(image.path) in good:
            found = None
        else:
            found = bad.get(image.path) or _fault(image, images)
            if found is None:
                good.add(hash(image.path))
            else:
                bad[image.path] = found
        yield row, at_row(row, found) or got


def _fault(image: Image, root: str | Path | None) -> DataError | None:
    try:
        check_image(image, root)
    except DataError as error:
        return error
    return None


def at_row(row: Row, found: DataError | None) -> DataError | None:
    """A copy of an error, placed at ``row``: one image's error is told for each record that shows it."""
    return None if found is None else row.locate(DataError(found.rule, key=found.key, mend=found.mend))
