"""Many labelers at once through a real server: no vote lost, none double, no pair given out too often.

``make annotate-load`` runs this file with 50 labelers of 200 votes (``ANNOTATE_LOAD=50x200``).
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import func, select

from apps.annotate.imports import Wish, import_pairs
from apps.annotate.passwords import Cost
from apps.annotate.service import Service
from apps.annotate.simulate import Person, Work, at_random, run, serving
from apps.annotate.store import Store, open_store
from apps.annotate.tables import assignments, events, pairs, users
from data.convert import Source
from data.jsonl import write_records
from tests.apps.annotate.conftest import PASSWORD, pair

LABELERS, VOTES = map(int, os.environ.get("ANNOTATE_LOAD", "12x25").split("x"))
#: votes wanted of each pair
WANTED = 2


def prepare(folder: Path, url: str, labelers: int, votes: int) -> list[Person]:
    """A store with pairs for all votes, and accounts whose passwords cost nothing to check."""
    store = open_store(url, create=True)
    # a few more than needed: who has voted on the last open pair cannot vote on it again
    count = labelers * votes // WANTED + labelers
    write_records(folder / "pairs.jsonl", [pair(f"{k:05d}", image=None) for k in range(count)])
    wish = Wish(labels=WANTED, overlap=0, overlap_labels=WANTED)
    import_pairs(store, Source(folder / "pairs.jsonl", None, "preference"), wish=wish)
    service = Service(store, cost=Cost(n=2, r=1, p=1))
    service.set_rules({"qualification": 0, "pass_mark": 0, "gold_every": 0})
    people = [Person(f"labeler{k}", PASSWORD) for k in range(labelers)]
    for person in people:
        service.accounts.add(person.name, person.password)
    service.accounts.add("root", PASSWORD, "admin")
    store.close()
    return people


def check(store: Store, done: list[Work]) -> int:
    """Every acknowledged vote is in the log once, the counters say what the log says; the number of votes."""
    with store.read() as connection:
        names = dict(connection.execute(select(users.c.id, users.c.name)).tuples().all())
        log = connection.execute(select(events).order_by(events.c.id)).all()
        keys = dict(connection.execute(select(pairs.c.n, pairs.c.key)).tuples().all())
        counted = connection.execute(select(pairs.c.n, pairs.c.votes, pairs.c.wanted, pairs.c.open)).all()
        given = connection.execute(select(assignments).where(assignments.c.state == "voted")).all()
        tallied = connection.scalar(select(func.sum(users.c.votes)))
    assert {event.kind for event in log} == {"vote"}
    kept = {event.id: (names[event.user_id], keys[event.pair_n], event.token) for event in log}
    told = {number: (work.name, *rest) for work in done for number, *rest in work.votes}
    # none lost
    assert {number: kept.get(number) for number in told} == told
    # none double: neither a request, nor a labeler on a pair
    assert len({(event.user_id, event.token) for event in log}) == len(log)
    assert len({(event.user_id, event.pair_n) for event in log}) == len(log)
    # nobody's vote but those that were asked for
    assert len(log) == len(told)
    votes = Counter(event.pair_n for event in log)
    for row in counted:
        assert row.votes == votes[row.n] <= row.wanted
        assert row.open == (row.votes < row.wanted)
    assert {(a.user_id, a.pair_n, a.event_id) for a in given} == {(e.user_id, e.pair_n, e.id) for e in log}
    assert tallied == len(log)
    return len(log)


def under_load(folder: Path, url: str) -> None:
    people = prepare(folder, url, LABELERS, VOTES)
    with serving(["--store", url, "--port", "0"]) as (address, _):
        start = time.perf_counter()
        done = run(address, people, at_random, VOTES)
        took = time.perf_counter() - start
    store = open_store(url)
    assert check(store, done) == LABELERS * VOTES
    assert {work.ended for work in done} == {"votes"}
    store.close()
    seconds = sorted(s for work in done for s in work.seconds)
    told = f"{LABELERS} labelers, {VOTES} votes each, no pause between them, {url.split(':')[0]}"
    middle, late = statistics.median(seconds) * 1e3, seconds[int(0.95 * len(seconds))] * 1e3
    rate = f"{len(seconds) / took:.0f} votes a second"
    # shown by pytest -s
    sys.stdout.write(f"\n{told}: {rate}, round trip median {middle:.0f} ms, 95 % {late:.0f} ms\n")


def test_sqlite(tmp_path: Path) -> None:
    under_load(tmp_path, f"sqlite:///{tmp_path / 'votes.db'}")


def test_postgresql(tmp_path: Path, database: str) -> None:
    under_load(tmp_path, database)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_server_that_is_killed_has_kept_what_it_acknowledged(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """kill -9 in the middle; the labelers' requests whose answers were lost are sent again."""
    url = f"sqlite:///{tmp_path / 'votes.db'}"
    if kind == "postgresql":
        url = request.getfixturevalue("database")
    people = prepare(tmp_path, url, 6, 20)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    arguments = ["--store", url, "--port", str(port)]
    done: list[Work] = []
    voting = threading.Thread(
        target=lambda: done.extend(run(f"http://127.0.0.1:{port}", people, at_random, 20))
    )
    store = open_store(url)
    for wanted in (50, 120):
        with serving(arguments) as (_, process):
            if not voting.is_alive():
                voting.start()
            while votes_in(store) < wanted and voting.is_alive():
                time.sleep(0.01)
            if wanted < 120:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
            else:
                voting.join(timeout=60)
    assert not voting.is_alive() and len(done) == 6
    assert check(store, done) == 120
    store.close()


def votes_in(store: Store) -> int:
    with store.read() as connection:
        return int(connection.scalar(select(func.count()).select_from(events)) or 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_asked_to_end_ends_well(tmp_path: Path, number: int) -> None:
    url = f"sqlite:///{tmp_path / 'votes.db'}"
    prepare(tmp_path, url, 1, 1)
    with serving(["--store", url, "--port", "0"]) as (_, process):
        process.send_signal(number)
        assert process.wait(timeout=30) == 0
        assert process.stdout is not None and process.stdout.read() == "stopped\n"
    # its log is put away, so that the one file is the store
    assert [path.name for path in tmp_path.glob("votes.db*")] == ["votes.db"]
