"""``align data convert | mix | formats``: change a file's layout, put several together, list the layouts."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.convert import PARQUET, Outcome, Source, convert_rows
from data.convert import convert as convert_texts
from data.detect import OWN, describe, detect
from data.errors import DataError
from data.facts import read_captions
from data.formats import FORMATS, Format, choose
from data.schema import RECORDS


def source_of(args: argparse.Namespace, wanted: str | None = None) -> Source:
    """The file of the arguments, its format told from the content where none is named, and said.

    ``wanted``: a record kind that a family's format should give, where ``--kind`` names none.
    """
    kind = args.kind or wanted
    name = args.source
    if name is None:
        found = detect(args.src)
        print(f"{args.src}: {describe(found)}")
        if not found:
            mend = "name it (--format; align data formats lists them), or look at it (align data inspect)"
            raise DataError("no format's keys are all there", file=str(args.src), mend=mend)
        name = found[0].name
    source = None if name == OWN else _of_kind(name, kind, must=args.kind is not None)
    return Source(args.src, source, kind, options_of(args.options), args.images)


def _of_kind(name: str, kind: str | None, must: bool) -> Format:
    """The format, or its family's that gives ``kind``; unless it ``must``, the format where none does."""
    try:
        return choose(name, kind)
    except DataError:
        if name not in FORMATS or must:
            raise
        return choose(name)


def not_over(output: Path | None, others: Iterable[Path]) -> None:
    """Raise DataError for an output that is one of the other files, however either is spelled."""
    if output is not None and any(output.resolve() == other.resolve() for other in others):
        rule = "it is another of the command's files, and would be replaced"
        raise DataError(rule, file=str(output), mend="choose another name")


def options_of(given: Iterable[str]) -> dict[str, str]:
    """``NAME=VALUE`` arguments. Raises DataError for one without "="."""
    found = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise DataError(f"{text!r} is no NAME=VALUE", key="--set", mend="write it like annotations=FILE")
        found[name] = value
    return found


def convert(args: argparse.Namespace) -> int:
    """Write SRC in another format."""
    if args.dst.exists() and not args.force:
        raise DataError("the target exists already", file=str(args.dst), mend="choose another, or --force")
    not_over(args.dst, [args.src])
    not_over(args.rejects, [args.src, args.dst])
    if args.rejects is not None and args.rejects.exists() and not args.force:
        mend = "choose another, or --force; it may have been mended"
        raise DataError("the rejects file exists already", file=str(args.rejects), mend=mend)
    target = None if args.target == OWN else choose(args.target)
    wanted = "example" if args.prompts else None if target is None else target.kind
    source = source_of(args, wanted)
    if args.prompts and source.format is not None and source.format.kind not in ("example", "prompt"):
        source = replace(source, format=choose(source.format.name, "prompt"))
    target = check_target(source, target, args)
    if source.format is None and (target is not None or args.prompts):
        source = replace(source, kind="example" if args.prompts or target is None else target.kind)
    if args.captions is not None:
        source = replace(source, captions=read_captions(args.captions))
    source = replace(source, prompts=args.prompts, fetch=args.fetch, save=args.save_images)
    policy = {
        "limit": args.limit,
        "strict": args.strict,
        "max_bad": args.max_bad,
        "rejects": args.rejects,
        "track": progress("records"),
    }
    if args.dataset or args.dst.suffix == PARQUET:
        outcome = _to_parquet(args, source, target, policy)
    else:
        outcome = convert_texts(source, args.dst, target, **policy)
    report(args, outcome, source, target)
    return 0


def check_target(source: Source, target: Format | None, args: argparse.Namespace) -> Format | None:
    """The target that holds the source's kind of record. Raises DataError where there is none."""
    kind = source.format.kind if source.format is not None else args.kind
    if args.prompts:
        kind = "prompt"
    if target is not None and kind is not None:
        target = choose(args.target, kind)
    if target is not None and target.row is None:
        raise DataError(f"format {target.name!r} can only be read", key="--to", mend="see align data formats")
    if target is None and kind is not None and kind not in RECORDS:
        rule = f"{kind!r} items are benchmark files, not records"
        mend = "evaluators read them as they are; --kind prompt makes records of them"
        raise DataError(rule, key="--to", mend=mend)
    return target


def _to_parquet(
    args: argparse.Namespace, source: Source, target: Format | None, policy: dict[str, Any]
) -> Outcome:
    from data.parquet import embed, write_dataset, write_parquet

    if target is None:
        mend = "add --to trl, or another foreign format (align data formats)"
        raise DataError("Parquet holds columns, and our own records are no columns", key="--to", mend=mend)
    if args.dataset and args.force and args.dst.exists():
        mend = "delete it, or choose another folder"
        raise DataError("a data set's folder is not replaced", file=str(args.dst), mend=mend)

    if args.images is not None and target.sample is None:
        mend = "leave out --images, or choose a layout that holds pictures, such as trl or llava"
        raise DataError(f"{target.name} names pictures, and holds none", key="--images", mend=mend)
    like = [] if target.sample is None else [target.to_row(target.sample)]
    if args.images is not None:
        like = [_pictured(row) for row in like]

    def change(rows: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
        return embed(rows, args.images) if args.images is not None else rows

    def write(rows: Iterable[dict[str, Any]]) -> int:
        if not args.dataset:
            return write_parquet(args.dst, rows, like)
        return write_dataset(args.dst, rows, card=_card(args, target), like=like)

    return convert_rows(source, target, write, change=change, **policy)


def _pictured(row: dict[str, Any]) -> dict[str, Any]:
    """A sample's row with its picture as bytes."""
    picture = {"bytes": b"", "path": "picture.png"}
    held = {"image": picture, "images": [picture]}
    return row | {key: value for key, value in held.items() if key in row}


def _card(args: argparse.Namespace, target: Format) -> str:
    return (
        f"# {args.dst.name}\n\nRecords of `{args.src.name}` in the layout `{target.name}`: {target.doc}.\n\n"
        "Made by `align data convert`; read it with `datasets.load_dataset`, or with "
        f"`align data convert` from `{target.name}`.\n"
    )


def report(args: argparse.Namespace, outcome: Outcome, source: Source, target: Format | None) -> None:
    """What was written and what was not, in words."""
    where = f", see {args.rejects}" if args.rejects else ""
    print(f"{outcome.written} records written to {args.dst}; {outcome.bad} bad ones left out{where}")
    say_counts("kinds passed over", outcome.other)
    if source.format is not None:
        say_counts(f"keys of {source.format.name} not carried over", outcome.spare)
    if source.captions is not None:
        print(f"captions found for {outcome.captioned} records, none for {outcome.uncaptioned}")
    if target is not None:
        say_counts(f"fields that {target.name} does not hold in full", outcome.changed)


def say_counts(what: str, counts: Counter[str] | dict[str, int]) -> None:
    """One line, if there is anything to say."""
    if counts:
        print(f"{what}: {', '.join(f'{key} ({n})' for key, n in sorted(counts.items()))}")


def progress(unit: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """A bar on a terminal, nothing elsewhere."""
    import sys

    from tqdm import tqdm

    return lambda records: tqdm(records, unit=f" {unit}", disable=not sys.stderr.isatty(), leave=False)


def mix(args: argparse.Namespace) -> int:
    """Write the mixture that a recipe describes."""
    from align.config import resolve
    from apps.shipped import find_recipe
    from data.mix import MixSettings
    from data.mix import mix as mix_sources

    recipe, overrides = find_recipe(args.recipe), list(args.overrides)
    if recipe is None:
        overrides.insert(0, args.recipe)
    settings = resolve(MixSettings, recipe, overrides)
    if Path(settings.output).exists() and not args.force:
        rule = "the output exists already"
        raise DataError(rule, file=settings.output, mend="choose another output=FILE, or --force")
    manifest = mix_sources(settings)
    for name, source in manifest["sources"].items():
        taken = f"{source['taken']:>9} of {source['records']:<9} {source['share']:6.1%}"
        print(f"{name:<16}{taken}  {source['format']}")
    written = manifest["output"]
    print(f"{written['records']} records written to {settings.output}; manifest beside it")
    return 0


def formats(args: argparse.Namespace) -> int:
    """List the formats, with their options."""
    print(f"{OWN:<20}{'any record':<13}read, write  the project's own JSON lines")
    for fmt in FORMATS.values():
        ways = "read, write" if fmt.row is not None else "read"
        print(f"{fmt.name:<20}{fmt.kind:<13}{ways:<13}{fmt.doc}")
        for name, words in fmt.options.items():
            must = " (needed)" if name in fmt.required else ""
            print(f"{'':<33}--set {name}=...{must}: {words}")
    return 0
