"""``align data convert | inspect | validate | formats``: look at data, check it, change its layout."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps import arguments as kinds

if TYPE_CHECKING:
    from data.formats import Format
    from data.jsonl import Pairs

#: the name of the project's own layout on the command line
OWN = "schema"


def add_parser(subparsers: argparse._SubParsersAction) -> argparse._SubParsersAction:
    """Add ``data`` and its commands; returns the action to which further data commands can be added."""
    data = subparsers.add_parser("data", help="convert, inspect and validate data")
    commands = data.add_subparsers(dest="data_command", metavar="COMMAND", required=True)
    convert = commands.add_parser("convert", help="change a file from one format to another")
    convert.add_argument("src", metavar="SRC", type=Path)
    convert.add_argument("dst", metavar="DST", type=Path)
    convert.add_argument("--from", dest="source", metavar="F", default=OWN, help=f"default: {OWN}")
    convert.add_argument("--to", dest="target", metavar="G", default=OWN, help=f"default: {OWN}")
    convert.add_argument("--kind", help="the record kind wanted, where a format family has several")
    convert.add_argument("--limit", type=kinds.count, metavar="N", help="the first N records only")
    convert.add_argument("--force", action="store_true", help="replace DST if it exists")
    inspect = commands.add_parser("inspect", help="say what a file holds")
    inspect.add_argument("src", metavar="FILE", type=Path)
    inspect.add_argument(
        "--limit", type=kinds.count, metavar="N", default=1000, help="records to look at (1000)"
    )
    validate = commands.add_parser(
        "validate",
        help="check every record; exit status 1 if one is bad",
        description="Check every record of a file and name the bad ones on standard error.",
        epilog="Exit status: 0 when all records are good; 1 when bad ones were found, or none at all; "
        "2 when the check could not be made (no such file, an unknown format).",
    )
    validate.add_argument("src", metavar="FILE", type=Path)
    validate.add_argument("--format", dest="source", metavar="F", default=None, help="default: detected")
    validate.add_argument("--decode", action="store_true", help="decode every image too (needs --images)")
    for parser in (convert, validate):
        parser.add_argument(
            "--images", type=Path, metavar="DIR", help="image root; pictures must be there and readable"
        )
        parser.add_argument("--rejects", type=Path, metavar="FILE", help="write bad records and why here")
        parser.add_argument("--strict", action="store_true", help="stop at the first bad record")
    convert.add_argument(
        "--max-bad", type=kinds.share, default=0.01, metavar="SHARE", help="tolerated (0.01)"
    )
    commands.add_parser("formats", help="list the formats")
    for parser in set(commands.choices.values()):
        parser.set_defaults(run=run)
    return commands


def run(args: argparse.Namespace) -> int:
    """Carry out one data command; 0, or 1 where ``validate`` finds bad records. Raises DataError."""
    return _COMMANDS[args.data_command](args)


def _convert(args: argparse.Namespace) -> int:
    from data.jsonl import DataError, keep, read_rows, write_records

    if args.dst.exists() and not args.force:
        raise DataError("the target exists already", file=str(args.dst), mend="choose another, or --force")
    if args.rejects is not None and args.rejects in (args.src, args.dst):
        raise DataError("the rejects file is SRC or DST", file=str(args.rejects), mend="choose another")
    source, target = _formats(args)
    other: Counter[str] = Counter()
    pairs = _pairs(args.src, source, args.kind, args.images, other)
    if target is not None:
        pairs = _holdable(pairs, target)
    policy = {"limit": args.limit, "strict": args.strict, "max_bad": args.max_bad, "rejects": args.rejects}
    count: Counter[str] = Counter()
    records = list(keep(_counted(pairs, count), **policy))
    if not records:
        raise DataError("no record to convert", file=str(args.src), mend="check --from (align data inspect)")
    if target is None:
        write_records(args.dst, records)
    else:
        from data.formats.base import original_ids

        rows = [target.to_row(record, name) for record, name in original_ids(records)]
        target.write_rows(args.dst, rows)
    where = f", see {args.rejects}" if args.rejects else ""
    print(f"{len(records)} records written to {args.dst}; {count['bad']} bad ones left out{where}")
    _say_counts("kinds passed over", other)
    if source is not None:
        seen = (value for _, value in read_rows(args.src) if isinstance(value, dict))
        spare = Counter(key for value in seen for key in value if key not in source.keys)
        _say_counts(f"keys of {source.name} not carried over", spare)
    if target is not None and hasattr(records[0], "kind"):
        back = target.read(args.dst, max_bad=0.0)
        _say_counts(f"fields that {target.name} does not hold in full", _changed(records, back))
    return 0


def _formats(args: argparse.Namespace) -> tuple[Format | None, Format | None]:
    """The source and target formats (None = our own), of one record kind."""
    from data.formats import choose
    from data.jsonl import DataError
    from data.schema import RECORDS

    source = None if args.source == OWN else choose(args.source, args.kind)
    target = None if args.target == OWN else choose(args.target)
    kind = source.kind if source is not None else args.kind
    if target is not None and kind is not None:
        target = choose(args.target, kind)
    if target is not None and target.row is None:
        raise DataError(f"format {target.name!r} can only be read", key="--to", mend="see align data formats")
    if target is None and kind is not None and kind not in RECORDS:
        rule = f"{kind!r} items are benchmark files, not records"
        raise DataError(rule, key="--to", mend="evaluators read them as they are; no conversion is needed")
    if source is None and target is not None:
        args.kind = target.kind
    return source, target


def _pairs(
    src: Path,
    source: Format | None,
    kind: str | None,
    images: Path | None,
    other: Counter[str],
) -> Pairs[Any]:
    """The records of a file as a reading pipeline, with the check of the image files if a root is given."""
    from data.formats.base import unique_ids
    from data.jsonl import no_duplicates, record_pairs
    from data.load import existing, of_kind

    if source is not None:
        pairs = unique_ids(source.pairs(src))
    else:
        pairs = no_duplicates(record_pairs(src))
        if kind is not None:
            pairs = of_kind(pairs, kind, other)
    return existing(pairs, images) if images is not None else pairs


def _holdable(pairs: Pairs[Any], target: Format) -> Pairs[Any]:
    """Turn the records that the target cannot hold into errors at their place in the source."""
    from data.jsonl import DataError

    for row, got in pairs:
        if not isinstance(got, DataError):
            try:
                target.to_row(got)
            except DataError as error:
                got = row.locate(error)
        yield row, got


def _counted(pairs: Pairs[Any], count: Counter[str]) -> Pairs[Any]:
    for row, got in pairs:
        count["bad" if isinstance(got, ValueError) else "good"] += 1
        yield row, got


def _changed(records: list[Any], back: list[Any]) -> Counter[str]:
    """Fields that came back different when the written file was read again, and in how many records."""
    from data.jsonl import dump

    changed: Counter[str] = Counter()
    for before, after in zip(map(dump, records), map(dump, back), strict=True):
        changed.update(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    return changed


def _say_counts(what: str, counts: Counter[str]) -> None:
    if counts:
        print(f"{what}: {', '.join(f'{key} ({n})' for key, n in sorted(counts.items()))}")


def _inspect(args: argparse.Namespace) -> int:
    from data.detect import describe, detect
    from data.jsonl import read_rows

    found = detect(args.src)
    print(f"format: {describe(found)}")
    keys: Counter[str] = Counter()
    values: dict[str, Counter[str]] = {"kind": Counter(), "source": Counter(), "split": Counter()}
    images: set[str] = set()
    first, rows, broken = None, 0, 0
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
            images.add(json.dumps(value.get("image", value.get("images")), sort_keys=True))
    print(f"records looked at: {rows}" + (f", {broken} of them no JSON objects" if broken else ""))
    print(f"keys: {', '.join(f'{key} ({n})' for key, n in keys.most_common())}")
    for name, count in values.items():
        _say_counts(name, count)
    print(f"different images: {len(images)}")
    if first is not None:
        print("first record:\n" + json.dumps(_short(first), ensure_ascii=False, indent=2))
    return 0


def _short(value: Any, width: int = 200) -> Any:
    """The value with long texts and lists cut, for reading."""
    if isinstance(value, dict):
        return {key: _short(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_short(v) for v in value[:6]] + ([f"... {len(value) - 6} more"] if len(value) > 6 else [])
    return value[:width] + "..." if isinstance(value, str) and len(value) > width else value


def _validate(args: argparse.Namespace) -> int:
    from data.detect import detect
    from data.formats import choose
    from data.jsonl import DataError, keep

    name = args.source or next((found.name for found in detect(args.src)), OWN)
    source = None if name == OWN else choose(name)
    if args.decode and args.images is None:
        raise DataError("--decode needs an image root", key="--images", mend="give --images DIR")
    pairs = _pairs(args.src, source, None, args.images, Counter())
    pairs = _decoded(pairs, args.images) if args.decode else pairs
    count: Counter[str] = Counter()
    try:
        for _ in keep(_told(_counted(pairs, count)), strict=args.strict, max_bad=1.0, rejects=args.rejects):
            pass
    except DataError:
        # a strict check ends with its first bad record, which was told; any other error is the file's
        if not (args.strict and count["bad"]):
            raise
    print(f"{args.src} as {name}: {count['good']} good, {count['bad']} bad records")
    return 1 if count["bad"] or not count["good"] else 0


def _told(pairs: Pairs[Any]) -> Pairs[Any]:
    for row, got in pairs:
        if isinstance(got, ValueError):
            print(got, file=sys.stderr)
        yield row, got


def _decoded(pairs: Pairs[Any], images: Path) -> Pairs[Any]:
    from data.images import open_image
    from data.jsonl import DataError
    from data.load import at_row
    from data.schema import Image

    known: dict[str | bytes, DataError | None] = {}
    for row, got in pairs:
        image = getattr(got, "image", None)
        if isinstance(image, Image) and image.url is None:
            key = image.path or image.data or b""
            if key not in known:
                try:
                    open_image(image, images)
                    known[key] = None
                except DataError as error:
                    known[key] = error
            got = at_row(row, known[key]) or got
        yield row, got


def _list_formats(args: argparse.Namespace) -> int:
    from data.formats import FORMATS

    print(f"{OWN:<20}{'any record':<13}read, write  the project's own JSON lines")
    for fmt in FORMATS.values():
        ways = "read, write" if fmt.row is not None else "read"
        print(f"{fmt.name:<20}{fmt.kind:<13}{ways:<13}{fmt.doc}")
    return 0


_COMMANDS = {"convert": _convert, "inspect": _inspect, "validate": _validate, "formats": _list_formats}
