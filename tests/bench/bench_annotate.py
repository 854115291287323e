"""The annotation app: a vote's round trip with 20 labelers at once, and 100,000 pairs in and out.

Labelers are threads with a connection each, in one process beside the server's, over SQLite: a vote's answer
holds the next pair too. Round trips are seconds of the clock, and so depend on what else the machine does;
loading and exporting are told in CPU seconds of this process and in those of the clock.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pil
from sqlalchemy import insert, select

from apps.annotate.exports import export
from apps.annotate.imports import Wish, import_pairs
from apps.annotate.passwords import Cost
from apps.annotate.results import Answers, Task
from apps.annotate.service import Service
from apps.annotate.simulate import Person, at_random, run, serving
from apps.annotate.store import Store, open_store
from apps.annotate.tables import assignments, events, pairs
from data.convert import Source
from data.jsonl import write_records
from data.schema import Image, Message, Preference, Response

PASSWORD = "a long enough one"
CHEAP = Cost(n=2, r=1, p=1)
PAIRS, PICTURES = 100_000, 2_000
TEXT = "The image shows a street with two cats, a red bench in the middle and a black car at the bottom. "


def write_pairs(folder: Path, count: int, pictures: int) -> Source:
    """Pairs of texts of some 60 words, and small pictures."""
    images = folder / "images"
    images.mkdir()
    for k in range(pictures):
        Pil.new("RGB", (96, 96), (k % 256, 0, 0)).save(images / f"{k}.png")
    records = (
        Preference(
            id=f"pair-{k:06d}",
            image=Image(id=f"{k % pictures}", path=f"{k % pictures}.png"),
            messages=[Message(role="user", content="Describe this image in detail.")],
            responses=[
                Response(text=TEXT * 3 + f"{k}", model="a"),
                Response(text=TEXT * 3 + "A dog.", model="b"),
            ],
            choices={},
        )
        for k in range(count)
    )
    write_records(folder / "pairs.jsonl", records)
    return Source(folder / "pairs.jsonl", None, "preference", images=images)


def prepare(folder: Path, labelers: int, count: int) -> tuple[str, list[Person]]:
    url = f"sqlite:///{folder / 'votes.db'}"
    store = open_store(url, create=True)
    source = write_pairs(folder, count, 50)
    import_pairs(store, source, wish=Wish(overlap=0.1))
    service = Service(store, cost=CHEAP)
    service.set_rules({"qualification": 0, "pass_mark": 0, "gold_every": 0})
    people = [Person(f"labeler{k}", PASSWORD) for k in range(labelers)]
    for person in people:
        service.accounts.add(person.name, person.password)
    service.accounts.add("root", PASSWORD, "admin")
    store.close()
    return url, people


def cpu_of(pid: int) -> float:
    """CPU seconds that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(("pause", "votes"), [(1.0, 15), (0.0, 40)])
def test_round_trip_of_a_vote(tmp_path: Path, pause: float, votes: int) -> None:
    url, people = prepare(tmp_path, 20, 20 * votes + 100)
    images = str(tmp_path / "images")
    with serving(["--store", url, "--images", images, "--port", "0"]) as (address, process):
        before, start = cpu_of(process.pid), time.perf_counter()
        done = run(address, people, at_random, votes, pause=pause)
        took, cpu = time.perf_counter() - start, cpu_of(process.pid) - before
    seconds = sorted(s for work in done for s in work.seconds)
    count, median = len(seconds), statistics.median(seconds)
    late, each = seconds[int(0.95 * count)], cpu / count
    print(f"\n20 labelers, {pause:g} s before each vote: {count} votes, {count / took:.0f} a second")
    print(f"  round trip of a vote: median {median * 1e3:.1f} ms, 95 % {late * 1e3:.1f} ms")
    print(f"  the server's CPU, with the next pair and its picture: {each * 1e3:.1f} ms a vote")
    print(f"  the machine's load meanwhile: {os.getloadavg()[0]:.1f}")
    assert count == 20 * votes
    # people take longer than a second; without any pause the time is that of 20 requests in a row
    assert pause == 0 or median < 0.05


def vote_on_all(store: Store, user: int, wanted: int) -> None:
    """A vote on every pair, as the service would have left it."""

    def work(connection: Any) -> None:
        numbers = connection.scalars(select(pairs.c.n).order_by(pairs.c.n).limit(wanted)).all()
        made = {"at": 0.0, "user_id": user, "kind": "vote", "hallucination": 0, "flipped": 0}
        given = {"user_id": user, "flipped": 0, "state": "voted", "served": 0.0, "expires": 0.0}
        connection.execute(insert(events), [made | {"pair_n": n, "token": f"token-{n}"} for n in numbers])
        own = select(events.c.pair_n, events.c.id).where(events.c.user_id == user)
        numbered = connection.execute(own).all()
        connection.execute(insert(assignments), [given | {"pair_n": n, "event_id": e} for n, e in numbered])
        connection.execute(pairs.update().where(pairs.c.n.in_(select(events.c.pair_n))).values(votes=1))
        connection.execute(pairs.update().where(pairs.c.votes >= pairs.c.wanted).values(open=0))

    store.write(work)


def test_a_hundred_thousand_pairs(tmp_path: Path) -> None:
    source = write_pairs(tmp_path, PAIRS, PICTURES)
    store = open_store(f"sqlite:///{tmp_path / 'votes.db'}", create=True)

    def timed(what: str, work: Any) -> None:
        cpu, clock = time.process_time(), time.perf_counter()
        work()
        cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
        print(f"  {what:24} {cpu:6.1f} s of CPU, {clock:6.1f} s by the clock")
        assert cpu < 30

    print(f"\n{PAIRS:,} pairs with {PICTURES:,} pictures")
    timed("load", lambda: import_pairs(store, source, wish=Wish(overlap=0)))
    service = Service(store, images=tmp_path / "images", cost=CHEAP)
    service.set_rules({"qualification": 0, "pass_mark": 0, "gold_every": 0})
    ann = service.accounts.add("ann", PASSWORD)
    start = time.process_time()
    for k in range(100):
        task = service.next_task(ann)
        assert isinstance(task, Task)
        service.vote(ann, task.pair, Answers("A"), f"token-of-ann-{k}")
    print(f"  {'a pair and a vote':24} {(time.process_time() - start) * 10:6.2f} ms of CPU")
    bob = service.accounts.add("bob", PASSWORD)
    vote_on_all(store, bob.id, PAIRS)
    for to in ("schema", "trl", "llava_rlhf"):
        timed(f"export to {to}", lambda to=to: export(store, tmp_path / f"{to}.json", to=to))
    timed("figures", lambda: (service.overview(), service.labelers(), service.bias()))
    store.close()


def test_a_labeler_far_ahead_of_the_others(tmp_path: Path) -> None:
    """Every pair wants two votes, and one labeler has voted on the first 10,000: all are passed over."""
    store = open_store(f"sqlite:///{tmp_path / 'votes.db'}", create=True)
    source = write_pairs(tmp_path, 12_000, 10)
    import_pairs(store, source, wish=Wish(labels=2, overlap=0, overlap_labels=2, order="file"))
    service = Service(store, cost=CHEAP)
    service.set_rules({"qualification": 0, "pass_mark": 0, "gold_every": 0})
    ann = service.accounts.add("ann", PASSWORD)
    vote_on_all(store, ann.id, 10_000)
    start = time.process_time()
    for k in range(50):
        task = service.next_task(ann)
        assert isinstance(task, Task)
        service.vote(ann, task.pair, Answers("A"), f"token-of-ann-{k}")
    cpu = (time.process_time() - start) / 50
    print(f"\na pair and a vote, 10,000 pairs ahead of the others: {cpu * 1e3:.1f} ms of CPU")
    assert cpu < 0.05
    assert service.progress(ann).pairs == 12_000
    store.close()
