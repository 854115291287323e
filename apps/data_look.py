"""``align data inspect | validate | stats | show``: look at data without changing it."""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from apps.data_convert import not_over, progress, say_counts, source_of
from data.convert import Source
from data.detect import OWN, describe, detect
from data.errors import DataError, Pairs
from data.formats import choose
from data.jsonl import keep, rejects_of
from data.rows import plain, read_rows
from data.schema import RECORDS

#: kinds of fault that inspect tells, the most frequent first
FAULTS = 5


def inspect(args: argparse.Namespace) -> int:
    """Say what a file is, what is in it, what is wrong with it and how to mend it."""
    found = detect(args.src)
    print(f"format: {describe(found)}")
    name = args.source or next((one.name for one in found), None)
    if name is None or name == OWN or choose(name).holder == "rows":
        # a file that is one object has no rows, and may be large
        _rows(args)
    if name is None:
        return 0
    args.source = name
    try:
        source = source_of(args)
        _faults(itertools.islice(source.pairs(), args.limit), source)
    except DataError as error:
        print(f"cannot be read as {args.source}: {error}")
    return 0


def _rows(args: argparse.Namespace) -> None:
    """The file's rows as they are: keys, counts and the first of them."""
    keys: Counter[str] = Counter()
    values: dict[str, Counter[str]] = {"kind": Counter(), "source": Counter(), "split": Counter()}
    images: set[int] = set()
    first, rows, broken = None, 0, 0
    try:
        for _, value in itertools.islice(read_rows(args.src), args.limit):
            rows += 1
            if not isinstance(value, dict):
                broken += 1
                continue
            first = first or value
            keys.update(list(value))
            for name, count in values.items():
                if isinstance(value.get(name), str):
                    count[value[name]] += 1
            if "image" in value or "images" in value:
                images.add(hash(repr(value.get("image", value.get("images")))))
    except DataError as error:
        print(f"after {rows} rows: {error}")
    if first is None:
        return
    print(f"rows looked at: {rows}" + (f", {broken} of them no JSON objects" if broken else ""))
    print(f"keys: {', '.join(f'{key} ({n})' for key, n in keys.most_common())}")
    for name, count in values.items():
        say_counts(name, count)
    print(f"different images: {len(images)}")
    print("first row:\n" + json.dumps(short(plain(first)), ensure_ascii=False, indent=2))


def _faults(pairs: Iterable[tuple[Any, Any]], source: Source) -> None:
    """How many records are good, and the kinds of fault of the others, each with its mend."""
    name = OWN if source.format is None else source.format.name
    good: Counter[str] = Counter()
    faults: dict[tuple[str | None, str], list[DataError]] = {}
    for _, got in pairs:
        if isinstance(got, DataError):
            key = None if got.key is None else ".".join("N" if p.isdigit() else p for p in got.key.split("."))
            faults.setdefault((key, got.mend), []).append(got)
        else:
            good[getattr(got, "kind", name)] += 1
    bad = sum(map(len, faults.values()))
    kinds = ", ".join(f"{n} {kind}" for kind, n in good.most_common()) or "none"
    print(f"read as {name}: {kinds} good, {bad} bad")
    for errors in sorted(faults.values(), key=len, reverse=True)[:FAULTS]:
        more = f" (and {len(errors) - 1} more like it)" if len(errors) > 1 else ""
        print(f"  {errors[0]}{more}")
    if len(faults) > FAULTS:
        print(f"  and {len(faults) - FAULTS} other kinds of fault; align data validate lists every record")


def short(value: Any, width: int = 200) -> Any:
    """The value with long texts and lists cut, for reading."""
    if isinstance(value, dict):
        return {key: short(v) for key, v in value.items()}
    if isinstance(value, list):
        return [short(v) for v in value[:6]] + ([f"... {len(value) - 6} more"] if len(value) > 6 else [])
    return value[:width] + "..." if isinstance(value, str) and len(value) > width else value


def validate(args: argparse.Namespace) -> int:
    """Name every bad record on standard error; 1 if there is one, or no record at all."""
    if args.decode and args.images is None:
        raise DataError("--decode needs an image root", key="--images", mend="give --images DIR")
    not_over(args.rejects, [args.src])
    source = source_of(args)
    name = OWN if source.format is None else source.format.name
    pairs = source.pairs()
    pairs = _decoded(pairs, args.images) if args.decode else pairs
    count: Counter[str] = Counter()
    with rejects_of(args.rejects) as put:
        for row, got in pairs:
            count["bad" if isinstance(got, DataError) else "good"] += 1
            if isinstance(got, DataError):
                print(got, file=sys.stderr)
                put(row, got)
                if args.strict:
                    break
    print(f"{args.src} as {name}: {count['good']} good, {count['bad']} bad records")
    return 1 if count["bad"] or not count["good"] else 0


def _decoded(pairs: Pairs[Any], images: Path) -> Pairs[Any]:
    from data.images import open_image
    from data.load import at_row
    from data.schema import Image

    known: dict[str, DataError | None] = {}

    def fault(image: Image) -> DataError | None:
        try:
            open_image(image, images)
        except DataError as error:
            return error
        return None

    for row, got in pairs:
        image = getattr(got, "image", None)
        if isinstance(image, Image) and image.path is not None:
            if image.path not in known:
                known[image.path] = fault(image)
            got = at_row(row, known[image.path]) or got
        elif isinstance(image, Image) and image.data is not None:
            got = at_row(row, fault(image)) or got
        yield row, got


def _records(args: argparse.Namespace, path: Path, limit: int | None = None) -> Iterator[Any]:
    """The records of a file one by one; benchmark files as the prompts that they are."""
    named = argparse.Namespace(**{**vars(args), "src": path})
    if path != args.src:
        named.source, named.options, named.images, named.kind = None, [], None, None
    source = source_of(named)
    if source.format is not None and source.format.kind not in RECORDS:
        source = replace(source, format=choose(source.format.name, "prompt"))
    # a look at data is not stopped by its faults; they are told
    none = True
    for record in keep(progress("records")(source.pairs()), limit=limit, max_bad=1.0):
        if record.kind != "verdict":
            none = False
            yield record
    if none:
        raise DataError("no record in it", file=str(path), mend="look at it (align data inspect)")


def stats(args: argparse.Namespace) -> int:
    """Print the figures of a data set, and which pictures stand in others too."""
    from data.files import write_json
    from data.stats import Collector, overlap, pictures

    not_over(args.json, [args.src, *args.against])
    collector = Collector(args.images)
    for record in _records(args, args.src, args.limit):
        collector.add(record)
    found = collector.figures()
    for other in args.against:
        theirs = pictures(_records(args, other), args.against_images)
        found.setdefault("against", {})[str(other)] = overlap(collector.shown[""], theirs)
    print("\n".join(_lines(found)))
    if args.json is not None:
        write_json(args.json, found)
    return 0


def _lines(value: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Nested figures as indented lines; a mapping of plain values stands on one."""
    for key, item in value.items():
        if isinstance(item, dict) and any(isinstance(v, dict | list) for v in item.values()):
            yield f"{indent}{key}:"
            yield from _lines(item, indent + "  ")
        elif isinstance(item, dict):
            if item:
                yield f"{indent}{key}: {', '.join(f'{k} {v}' for k, v in item.items())}"
        elif isinstance(item, list):
            yield from (f"{indent}{_one_line(part)}" for part in item)
        else:
            yield f"{indent}{key}: {item}"


def _one_line(part: Any) -> str:
    if isinstance(part, dict):
        return "; ".join(f"{k}: {_one_line(v)}" for k, v in part.items())
    return ", ".join(map(str, part)) if isinstance(part, list) else str(part)


def show(args: argparse.Namespace) -> int:
    """Write a page of samples."""
    from evals.report import Gallery, Page, Status, Text, write_report

    output = args.output or args.src.with_name(args.src.name + ".html")
    not_over(output, [args.src])
    rng, counted, chosen = random.Random(args.seed), Counter[str](), list[tuple[int, Any]]()
    # each record is as likely as any other to be among those kept, however many there are
    for index, record in enumerate(_records(args, args.src)):
        counted[record.kind] += 1
        place = index if index < args.samples else rng.randrange(index + 1)
        if place < args.samples:
            chosen[place : place + 1] = [(index, record)]
    records = [record for _, record in sorted(chosen, key=lambda pair: pair[0])]
    items = [_item(record, args.images) for record in records]
    words = ", ".join(f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in counted.items())
    gallery = Gallery("Samples", items, f"{len(items)} of {counted.total()}, chosen by seed {args.seed}.")
    status = Status("finished", False, len(items), len(items), words)
    told = [f"{args.src}: {words}."]
    if args.images is None and any(
        record.image is not None and record.image.data is None for record in records
    ):
        told.append("Pictures are not shown: give the folder that their paths start from (--images DIR).")
    write_report(output, Page(args.src.name, [*map(Text, told), gallery], "data", status))
    print("\n".join([*told[1:], f"the page: {output}"]))
    return 0


def _item(record: Any, images: Path | None) -> Any:
    from evals.report import Answer, GalleryItem

    answers: dict[str, Answer] = {}
    if record.kind == "prompt":
        question = record.question
    else:
        turns = list(record.messages)
        question = next(m.content for m in turns if m.role == "user")
        rest = turns[turns.index(next(m for m in turns if m.role == "user")) + 1 :]
        answers = {f"{k}. {m.role}": Answer(m.content) for k, m in enumerate(rest, start=1)}
    if record.kind == "preference":
        for k, response in enumerate(record.responses):
            better = " (better)" if record.preferred == k else ""
            answers[f"response {k + 1}{better}"] = Answer(response.text)
    return GalleryItem(_thumbnail(record.image, images), f"{record.id}: {question}", answers, _truth(record))


def _thumbnail(image: Any, images: Path | None, side: int = 320) -> bytes | None:
    """A small JPEG of a record's picture; None where it has none, or it cannot be had."""
    import io

    from data.images import open_image

    if image is None or (images is None and image.data is None):
        return None
    try:
        picture = open_image(image, images)
    except DataError as error:
        print(error, file=sys.stderr)
        return None
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _truth(record: Any) -> str:
    facts = record.facts.model_dump()
    told = [f"{k}: {v if isinstance(v, str) else '; '.join(v)}" for k, v in facts.items() if v]
    return "\n".join(told)
