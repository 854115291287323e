"""``align data``: the commands' parsers; what they do stands in ``apps.data_convert`` and ``data_look``."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from apps import arguments as kinds

#: command -> the function that carries it out
COMMANDS = {
    "convert": "apps.data_convert:convert",
    "mix": "apps.data_convert:mix",
    "formats": "apps.data_convert:formats",
    "inspect": "apps.data_look:inspect",
    "validate": "apps.data_look:validate",
    "stats": "apps.data_look:stats",
    "show": "apps.data_look:show",
}
STATUS = (
    "Exit status: 0 when all went well (bad records within the tolerated share are left out and told); "
    "1 when validate found bad records, or none at all; 2 when the command could not be carried out: no such "
    "file, an unknown format, too many bad records. Nothing is written then."
)


def add_parser(subparsers: argparse._SubParsersAction) -> argparse._SubParsersAction:
    """Add ``data`` and its commands; returns the action to which further data commands can be added."""
    data = subparsers.add_parser("data", help="convert, inspect, check, mix and show data", epilog=STATUS)
    commands = data.add_subparsers(dest="data_command", metavar="COMMAND", required=True)
    _convert(commands)
    _mix(commands)
    inspect = _reading(commands, "inspect", "say what a file is, what is wrong with it and how to mend it")
    inspect.add_argument(
        "--limit", type=kinds.count, metavar="N", default=1000, help="records to look at (1000)"
    )
    validate = _reading(commands, "validate", "check every record; exit status 1 if one is bad")
    validate.add_argument("--decode", action="store_true", help="decode every image too (needs --images)")
    validate.add_argument("--rejects", type=Path, metavar="FILE", help="write bad records and why here")
    validate.add_argument("--strict", action="store_true", help="stop at the first bad record")
    stats = _reading(commands, "stats", "counts, lengths, pictures, balance of answers, duplicates, overlaps")
    stats.add_argument(
        "--against",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="other data or benchmarks: name pictures that stand in both",
    )
    stats.add_argument(
        "--against-images", type=Path, metavar="DIR", help="their image root, to compare contents"
    )
    stats.add_argument("--json", type=Path, metavar="FILE", help="write all figures here as well")
    stats.add_argument("--limit", type=kinds.count, metavar="N", help="the first N records only")
    show = _reading(commands, "show", "write an HTML page of samples to look at")
    show.add_argument("--output", type=Path, metavar="FILE", help="the page; default: <FILE>.html")
    show.add_argument("--samples", type=kinds.count, default=24, metavar="N", help="records shown (24)")
    show.add_argument("--seed", type=int, default=0, help="which ones; default: %(default)s")
    formats = commands.add_parser("formats", help="list the formats and their options")
    for parser in (*commands.choices.values(), formats):
        parser.set_defaults(run=run)
        parser.epilog = STATUS
    return commands


def _reading(commands: argparse._SubParsersAction, name: str, words: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}.")
    parser.add_argument("src", metavar="FILE", type=Path)
    _source(parser, ["--format"])
    return parser


def _source(parser: argparse.ArgumentParser, names: list[str]) -> None:
    parser.add_argument(*names, dest="source", metavar="F", help="default: told from the content")
    parser.add_argument(
        "--kind",
        choices=("example", "prompt", "preference", "verdict", "pope", "mmhal"),
        help="the record kind wanted, where a format family has several",
    )
    parser.add_argument(
        "--set",
        dest="options",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the format, such as a further file that it reads (align data formats)",
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="image root; pictures must be there and readable"
    )


def _convert(commands: argparse._SubParsersAction) -> None:
    convert = commands.add_parser(
        "convert",
        help="change a file from one format to another",
        description="Change a file from one format to another, completely or not at all.",
    )
    convert.add_argument("src", metavar="SRC", type=Path)
    convert.add_argument(
        "dst", metavar="DST", type=Path, help="a .parquet file holds the pictures of --images as bytes"
    )
    _source(convert, ["--from", "--format"])
    convert.add_argument(
        "--to", dest="target", metavar="G", default="schema", help="default: schema (our own)"
    )
    convert.add_argument(
        "--prompts",
        nargs="?",
        const="general",
        choices=("general", "detail", "complex"),
        metavar="CLASS",
        help="conversations become prompts: their first questions, of this length class (general)",
    )
    convert.add_argument(
        "--captions", type=Path, metavar="FILE", help="image_to_caption.json or COCO's captions, as facts"
    )
    convert.add_argument(
        "--fetch",
        type=Path,
        metavar="DIR",
        help="fetch pictures given by address into this folder",
    )
    convert.add_argument(
        "--save-images", type=Path, metavar="DIR", help="write pictures given as bytes to this folder"
    )
    convert.add_argument("--dataset", action="store_true", help="DST is a folder for datasets.load_dataset")
    convert.add_argument("--limit", type=kinds.count, metavar="N", help="the first N records only")
    convert.add_argument("--force", action="store_true", help="replace DST if it exists")
    convert.add_argument("--rejects", type=Path, metavar="FILE", help="write bad records and why here")
    convert.add_argument("--strict", action="store_true", help="stop at the first bad record")
    convert.add_argument(
        "--max-bad", type=kinds.share, default=0.01, metavar="SHARE", help="tolerated (0.01)"
    )


def _mix(commands: argparse._SubParsersAction) -> None:
    mix = commands.add_parser(
        "mix",
        help="several data sets as one file, with a manifest",
        description="Several data sets as one file, by weight or count, in a random order, with a manifest.",
    )
    mix.add_argument(
        "recipe", metavar="RECIPE", help="a YAML file, or a shipped recipe such as data/sft_plus"
    )
    mix.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. sources.vqa.count=1000")
    mix.add_argument("--force", action="store_true", help="replace the output if it exists")


def run(args: argparse.Namespace) -> int:
    """Carry out one data command; 0, or 1 where ``validate`` finds bad records. Raises DataError."""
    module, name = COMMANDS[args.data_command].split(":")
    return getattr(importlib.import_module(module), name)(args)
