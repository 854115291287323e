"""What the commands of ``align annotate`` do, and what they say."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import secrets
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from apps.annotate import words
from apps.annotate.assign import GOLD, QUALIFICATION, WORK
from apps.annotate.errors import StoreError
from apps.annotate.exports import export
from apps.annotate.imports import Wish, images_of, import_pairs, read_scores
from apps.annotate.passwords import hash_password, name_fault, password_fault, read_password_file
from apps.annotate.service import Service
from apps.annotate.store import Store, backup, open_store, put_setting
from data.errors import DataError
from data.jsonl import write_json


@contextlib.contextmanager
def _open(args: argparse.Namespace, *, create: bool = False) -> Iterator[Store]:
    store = open_store(args.store, create=create)
    try:
        yield store
    finally:
        store.close()


def import_(args: argparse.Namespace) -> None:
    """Add a file's pairs to the store, which is made if it is not there."""
    with _open(args, create=True) as store:
        _add(store, args, args.file, args.role)


def _add(store: Store, args: argparse.Namespace, file: Path, role: str) -> None:
    from apps.data_convert import progress, source_of

    given = argparse.Namespace(**vars(args) | {"src": file, "kind": None})
    source = replace(source_of(given, "preference"), kind="preference")
    known = store.setting("images")
    if source.images is None and known is not None:
        source = replace(source, images=Path(known))
    wish = Wish(args.labels, args.overlap, max(args.labels, args.overlap_labels), args.order, args.seed)
    scores = read_scores(args.scores) if args.scores is not None and role == WORK else None
    policy = {"limit": args.limit, "max_bad": args.max_bad, "rejects": args.rejects}
    found = import_pairs(store, source, role, wish, scores=scores, track=progress("pairs"), **policy)
    print(f"{file}: {found.added} {role} pairs added", end="")
    for count, text in (
        (found.known, "known already"),
        (found.identical, "with two equal responses left out"),
    ):
        print(f", {count} {text}" if count else "", end="")
    print(f", {found.unscored} without scores come last" if found.unscored else "")


def serve_(args: argparse.Namespace) -> None:
    """Serve a project until the process is asked to end."""
    from apps.annotate.pages import with_pages
    from apps.annotate.pages.guide import read_instructions
    from apps.annotate.serve import Address, serve

    told = None if args.instructions is None else read_instructions(args.instructions)
    new = any((args.data, args.gold, args.qualification))
    with _open(args, create=new) as store:
        if args.images is not None and not new:
            _move_images(store, args.images)
        for file, role in ((args.data, WORK), (args.gold, GOLD), (args.qualification, QUALIFICATION)):
            if file is not None:
                _add(store, args, file, role)
        service = Service(store, images=images_of(store))
        _set_rules(service, args)
        if args.title is not None:
            service.set_title(args.title)
        if args.passwords is not None:
            service.accounts.put(read_password_file(args.passwords))
        place = {"certificate": args.certificate, "key": args.key, "public": args.public_url}
        proxies = tuple(args.proxy)
        address = Address(args.host, args.port, plain=args.plain_http, proxies=proxies, **place)
        serve(service, address, say=_say, with_pages=partial(with_pages, instructions=told))


def _say(text: str) -> None:
    print(text, flush=True)


def _move_images(store: Store, images: Path) -> None:
    """The image root is elsewhere now."""
    if not images.is_dir():
        raise DataError("no such folder", key="--images", file=str(images), mend="give the image root")
    store.write(lambda connection: put_setting(connection, "images", str(images.resolve())))


def _set_rules(service: Service, args: argparse.Namespace) -> None:
    given = {
        "lease": None if args.lease is None else args.lease * 60,
        "qualification": args.test,
        "pass_mark": args.pass_mark,
        "gold_every": args.gold_every,
        "limit": args.votes,
    }
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if args.test is not None and args.pass_mark is None:
        # as strict as the default
        changes["pass_mark"] = -(-4 * args.test // 5)
    if changes:
        service.set_rules(changes)


def export_(args: argparse.Namespace) -> None:
    """Write the votes to a file."""
    _not_there(args)
    with _open(args) as store:
        found = export(store, args.output, args.labels, args.to, without=args.without)
    print(f"wrote {found.written} records to {args.output}")
    if found.ties:
        print(f"{found.ties} ties are left out: {args.to} cannot hold them")


def backup_(args: argparse.Namespace) -> None:
    """Copy the store to a file."""
    _not_there(args)
    with _open(args) as store:
        print(f"wrote {backup(store, args.output)}")


def _not_there(args: argparse.Namespace) -> None:
    if args.output.exists() and not args.force:
        raise DataError("exists already", file=str(args.output), mend="choose another, or --force")


def stats_(args: argparse.Namespace) -> None:
    """Print the figures of a project."""
    with _open(args) as store:
        if args.json is not None:
            store.check_output(args.json)
        service = Service(store)
        overview, agreement = service.overview(), service.agreement(args.resamples)
        bias, labelers = service.bias(), service.labelers()
    print("\n".join(words.stats(overview, agreement, bias, labelers)))
    if args.json is not None:
        rows = [asdict(row) for row in labelers]
        found = {"overview": overview, "agreement": agreement, "bias": bias, "labelers": rows}
        write_json(args.json, found)


# --- accounts ---


def users_(args: argparse.Namespace) -> None:
    """Show and change accounts."""
    if args.users_command == "hash":
        if fault := name_fault(args.name):
            raise StoreError(fault)
        print(f"{args.name}:{args.role}:{hash_password(_password())}")
        return
    with _open(args, create=args.users_command in ("add", "invite", "import")) as store:
        _user(Service(store), args)


def _user(service: Service, args: argparse.Namespace) -> None:
    accounts, name = service.accounts, getattr(args, "name", "")
    match args.users_command:
        case "list":
            print("\n".join(words.users(service.labelers())))
        case "add":
            accounts.add(name, _password(), args.role)
            print(f"{name} can sign in, as {args.role}")
        case "password":
            accounts.change(name, password=_password())
            print(f"{name} has another password, and is signed out")
        case "disable" | "enable":
            accounts.change(name, disabled=args.users_command == "disable")
            print(f"{name} is {args.users_command}d")
        case "retake":
            service.set_labeler(name, retake=True)
            print(f"{name} takes the test again")
        case "import":
            rows = read_password_file(args.file)
            accounts.put(rows)
            print(f"{len(rows)} accounts of {args.file} can sign in")
        case "invite":
            from apps.annotate.admin_api import invitation_path

            made = accounts.invite(args.role, args.uses, args.days)
            print(f"{args.url.rstrip('/')}{invitation_path(made)}")
        case "invitations":
            print("\n".join(words.invitations(accounts.invitations())))
        case "revoke":
            accounts.revoke(args.id)
            print(f"the invitation {args.id} is revoked; accounts that it made stay")


def _password() -> str:
    """A new password: asked for twice at a terminal, else one line of the input."""
    if sys.stdin.isatty():
        found = getpass.getpass("password: ")
        if found != getpass.getpass("again: "):
            raise StoreError("the two passwords differ; try again")
    else:
        found = sys.stdin.readline().rstrip("\n")
    if fault := password_fault(found):
        raise StoreError(fault)
    return found


# --- simulated labelers ---


def simulate_(args: argparse.Namespace) -> None:
    """Let simulated labelers vote."""
    from apps.annotate import simulate

    if args.url is not None and args.invitation is None:
        mend = "make one with --uses (align annotate users invite)"
        raise StoreError(f"labelers of a running server need an invitation (--invitation); {mend}")
    choose = simulate.at_random if args.world is None else simulate.of_world(args.world)
    with contextlib.ExitStack() as stack:
        url, code = args.url, (args.invitation or "").rpartition("#join=")[2]
        if url is None:
            with _open(args) as store:
                code = Service(store).accounts.invite("labeler", args.labelers, 1).code
            url, _ = stack.enter_context(simulate.serving(["--store", args.store, "--port", "0"]))
        # nobody else comes in by these accounts, which stay
        people = [simulate.Person(name, secrets.token_urlsafe(16), code) for name in _names(args.labelers)]
        found = simulate.run(url, people, choose, args.votes, pause=args.pause, seed=args.seed)
    seconds = sorted(s for work in found for s in work.seconds)
    print(f"{len(seconds)} votes of {len(found)} labelers")
    if seconds:
        median, slow = statistics.median(seconds), seconds[int(0.95 * (len(seconds) - 1))]
        print(f"round trip of a vote: median {median * 1e3:.1f} ms, 95 % {slow * 1e3:.1f} ms")
    for reason in sorted({work.ended for work in found} - {"votes"}):
        print(f"{sum(work.ended == reason for work in found)} ended early: {reason}")


def _names(count: int) -> list[str]:
    """Names that are new in any store."""
    run = secrets.token_hex(3)
    return [f"sim-{run}-{k + 1:03d}" for k in range(count)]
