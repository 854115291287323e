"""``align annotate``: the commands' parsers; what they do stands in ``apps.annotate.actions``."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from apps import arguments as kinds

STORE = "sqlite:///votes.db"
#: command -> what it is for
COMMANDS = {
    "serve": "serve a project's pages and API",
    "import": "add pairs, gold items or items of the test to a store",
    "export": "write the votes as records, or in another format",
    "stats": "throughput, agreement and labelers",
    "users": "accounts and invitations",
    "backup": "copy a store while it is in use",
    "simulate": "simulated labelers who vote through the API",
}


def add_parser(subparsers: Any) -> None:
    """Add ``annotate`` and its commands."""
    words = "people compare two responses: assign, collect, check and export their votes"
    annotate = subparsers.add_parser("annotate", help=words, description=f"{words[0].upper()}{words[1:]}.")
    commands = annotate.add_subparsers(dest="annotate_command", metavar="COMMAND", required=True)
    for name, add in _PARTS.items():
        text = COMMANDS[name]
        parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        help_text = "sqlite:///FILE or postgresql://USER@HOST/NAME (default: %(default)s)"
        parser.add_argument("--store", default=STORE, metavar="URL", help=help_text)
        add(parser)
        parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Carry out one command; returns the exit status."""
    actions = importlib.import_module("apps.annotate.actions")
    action = getattr(actions, f"{args.annotate_command}_")
    return action(args) or 0


# --- parts of the parsers ---


def _source(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pairs", "Any format of align data formats that holds preferences.")
    group.add_argument("--format", dest="source", metavar="F", help="default: told from the content")
    group.add_argument(
        "--set", dest="options", action="append", default=[], metavar="NAME=VALUE",
        help="an option of the format (align data formats)",
    )  # fmt: skip
    group.add_argument("--images", type=Path, metavar="DIR", help="the image root")
    group.add_argument(
        "--labels", type=kinds.count, default=1, metavar="N", help="votes a pair (default: %(default)s)"
    )
    words = "share of the pairs that get more votes, to measure agreement (default: %(default)s)"
    group.add_argument("--overlap", type=kinds.share, default=0.1, metavar="SHARE", help=words)
    words = "votes of those (default: %(default)s, or as many as --labels)"
    group.add_argument("--overlap-labels", type=kinds.count, default=3, metavar="N", help=words)
    group.add_argument(
        "--order", choices=("random", "file", "uncertain"), default="random",
        help="which pairs come first; uncertain: those whose scores differ least (default: %(default)s)",
    )  # fmt: skip
    words = 'rows {"id": ..., "scores": [s0, s1]} of a reward model (default: meta.scores of the pairs)'
    group.add_argument("--scores", type=Path, metavar="FILE", help=words)
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of order and overlap")
    group.add_argument("--limit", type=kinds.count, metavar="N", help="the first N pairs only")
    group.add_argument(
        "--max-bad", type=kinds.share, default=0.01, metavar="SHARE", help="bad records tolerated (0.01)"
    )
    group.add_argument("--rejects", type=Path, metavar="FILE", help="write bad records and why here")


def _serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, metavar="FILE", help="add these pairs first, if they are new")
    parser.add_argument("--gold", type=Path, metavar="FILE", help="likewise gold items: pairs with choices")
    words = "likewise items of the test, which labelers take before their first pair"
    parser.add_argument("--qualification", type=Path, metavar="FILE", help=words)
    _source(parser)
    rules = parser.add_argument_group("rules", "They are kept in the store.")
    rules.add_argument(
        "--lease", type=kinds.positive, metavar="MINUTES", help="a pair is held for a labeler (15)"
    )
    rules.add_argument("--test", type=kinds.whole, metavar="N", help="items of the test (5); 0: no test")
    rules.add_argument("--pass", dest="pass_mark", type=kinds.whole, metavar="N", help="right ones (4)")
    words = "one gold item among so many pairs (20); 0: none"
    rules.add_argument("--gold-every", type=kinds.whole, metavar="N", help=words)
    rules.add_argument(
        "--votes", type=kinds.whole, metavar="N", help="most votes of one labeler; 0: any number"
    )
    words = "what the project is called on its pages; it is kept in the store (align)"
    parser.add_argument("--title", metavar="TEXT", help=words)
    words = "the project's own instructions for labelers, Markdown or text, shown above ours"
    parser.add_argument("--instructions", type=Path, metavar="FILE", help=words)
    place = parser.add_argument_group("address")
    place.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    place.add_argument("--port", type=kinds.whole, default=7861, help="0: any free one (%(default)s)")
    place.add_argument("--certificate", type=Path, metavar="FILE", help="serve https, with --key")
    place.add_argument("--key", type=Path, metavar="FILE")
    place.add_argument("--public-url", metavar="URL", help="of a proxy in front, which ends TLS")
    words = "IP or network of a proxy on another machine; it adds X-Forwarded-For and passes Host on"
    place.add_argument(
        "--proxy", action="append", default=[], metavar="ADDRESS", help=f"{words}; may be given again"
    )
    words = "serve other machines without TLS: passwords can be read on their way"
    place.add_argument("--plain-http", action="store_true", help=words)
    place.add_argument("--passwords", type=Path, metavar="FILE", help="accounts, as users import reads them")


def _import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument(
        "--as", dest="role", choices=("work", "gold", "qualification"), default="work",
        help="pairs to compare, or items with known choices (default: %(default)s)",
    )  # fmt: skip
    _source(parser)


def _export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="FILE")
    words = "one record a pair by most votes; with decisions in their place; one a vote (%(default)s)"
    choices = ("majority", "adjudicated", "labelers")
    parser.add_argument("--labels", choices=choices, default="majority", help=words)
    words = "schema (ours), trl, llava_rlhf (default: %(default)s)"
    parser.add_argument("--to", default="schema", metavar="FORMAT", help=words)
    words = "leave out a labeler's votes; may be given again"
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help=words)
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")


def _stats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here as well")
    words = "resamples behind the intervals (default: %(default)s)"
    parser.add_argument("--resamples", type=kinds.count, default=1000, metavar="N", help=words)


def _backup(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="FILE")
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")


def _users(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Passwords are asked for; with input from a pipe, its first line is taken."
    commands = parser.add_subparsers(dest="users_command", metavar="COMMAND", required=True)
    commands.add_parser("list", help="all accounts")
    for name, words in {
        "add": "make an account",
        "password": "give an account another password",
        "disable": "shut an account out; its votes stay",
        "enable": "let it in again",
        "retake": "let a labeler take the test again",
    }.items():
        one = commands.add_parser(name, help=words)
        one.add_argument("name", metavar="NAME")
        if name == "add":
            one.add_argument("--role", choices=("labeler", "admin"), default="labeler")
    invite = commands.add_parser("invite", help="a link by which people make their own accounts")
    invite.add_argument("--role", choices=("labeler", "admin"), default="labeler")
    invite.add_argument("--uses", type=kinds.count, default=1, metavar="N", help="people (%(default)s)")
    invite.add_argument("--days", type=kinds.positive, default=7.0, metavar="N", help="(%(default)s)")
    invite.add_argument("--url", default="http://127.0.0.1:7861", help="where it is served (%(default)s)")
    commands.add_parser("invitations", help="those by which somebody can still come in, without their codes")
    revoke = commands.add_parser("revoke", help="end an invitation; accounts that it made stay")
    revoke.add_argument("id", metavar="ID", help="as invitations tells it")
    read = commands.add_parser("import", help="make or change the accounts of a password file")
    read.add_argument("file", type=Path, metavar="FILE")
    made = commands.add_parser("hash", help="print a line for a password file; needs no store")
    made.add_argument("name", metavar="NAME")
    made.add_argument("--role", choices=("labeler", "admin"), default="labeler")


def _simulate(parser: argparse.ArgumentParser) -> None:
    words = "of a running server; without it, one is started over the store"
    parser.add_argument("--url", help=words)
    parser.add_argument("--invitation", metavar="CODE", help="for --url: of as many uses as labelers")
    parser.add_argument("--labelers", type=kinds.count, default=12, metavar="N", help="(%(default)s)")
    parser.add_argument("--votes", type=kinds.count, default=25, metavar="N", help="of each (%(default)s)")
    words = "seconds of looking before a vote, on average (default: %(default)s)"
    parser.add_argument("--pause", type=_seconds, default=0.0, metavar="S", help=words)
    words = "the world that the pairs are of; without it, choices are random"
    parser.add_argument("--world", type=Path, metavar="DIR", help=words)
    parser.add_argument("--seed", type=int, default=0, metavar="N")


def _seconds(text: str) -> float:
    return 0.0 if text == "0" else kinds.positive(text)


_PARTS = {
    "serve": _serve,
    "import": _import,
    "export": _export,
    "stats": _stats,
    "users": _users,
    "backup": _backup,
    "simulate": _simulate,
}
