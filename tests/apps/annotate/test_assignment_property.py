"""Whatever labelers do, in whatever order: no pair is given out too often, and the log tells all.

A machine of steps, of which hypothesis looks for an order that breaks a rule.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import event, select

from apps.annotate.errors import Refused
from apps.annotate.imports import Wish, import_pairs
from apps.annotate.results import Answers, Task
from apps.annotate.service import Service
from apps.annotate.store import open_store
from apps.annotate.tables import assignments, events, pairs, users
from data.convert import Source
from data.jsonl import write_records
from tests.apps.annotate.conftest import CHEAP, PASSWORD, Clock, pair

LABELERS = ("ann", "bob", "cid")
who = st.sampled_from(LABELERS)
LEASE = 100.0


class Labelling(RuleBasedStateMachine):
    @initialize(labels=st.integers(1, 2), count=st.integers(1, 2))
    def begin(self, labels: int, count: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        folder = Path(self.folder.name)
        self.store = open_store(f"sqlite:///{folder / 'votes.db'}", create=True)
        event.listen(self.store.engine, "connect", lambda c, _: c.execute("PRAGMA synchronous=OFF").close())
        self.store.engine.dispose()
        records = [pair(f"{k}", image=None) for k in range(count)]
        write_records(folder / "pairs.jsonl", records)
        wish = Wish(labels=labels, overlap=0, overlap_labels=labels)
        import_pairs(self.store, Source(folder / "pairs.jsonl", None), wish=wish)
        write_records(folder / "gold.jsonl", [pair("g", image=None, choices={"hallucination": 0})])
        import_pairs(self.store, Source(folder / "gold.jsonl", None), "gold")
        self.clock = Clock()
        self.service = Service(self.store, clock=self.clock, cost=CHEAP)
        self.service.set_rules({"qualification": 0, "pass_mark": 0, "gold_every": 6, "lease": LEASE})
        self.users = {name: self.service.accounts.add(name, PASSWORD) for name in LABELERS}
        self.admin = self.service.accounts.add("root", PASSWORD, "admin")
        #: pairs that each labeler's tabs show: some are stale
        self.tabs: dict[str, list[str]] = {name: [] for name in LABELERS}
        self.tokens = 0

    def token(self) -> str:
        self.tokens += 1
        return f"token-{self.tokens:05d}"

    @rule(name=who)
    def asks(self, name: str) -> None:
        found = self.service.next_task(self.users[name])
        if isinstance(found, Task):
            self.tabs[name].append(found.pair)

    @rule(name=who, last=st.booleans(), said=st.sampled_from(["A", "B", "tie"]))
    def votes(self, name: str, last: bool, said: Any) -> None:
        answers = Answers(said, "A" if said == "tie" else None)
        user = self.users[name]
        self.tries(name, last, lambda key: self.service.vote(user, key, answers, self.token()))

    @rule(name=who, last=st.booleans())
    def skips(self, name: str, last: bool) -> None:
        self.tries(
            name, last, lambda pair_: self.service.skip(self.users[name], pair_, "unclear", self.token())
        )

    @rule(name=who, last=st.booleans())
    def renews(self, name: str, last: bool) -> None:
        self.tries(name, last, lambda pair_: self.service.renew(self.users[name], pair_))

    @rule(name=who)
    def undoes(self, name: str) -> None:
        try:
            self.tabs[name].append(self.service.undo(self.users[name], self.token()).pair)
        except Refused as error:
            assert error.code == "nothing_to_undo"

    @rule(name=who)
    def closes_the_tab(self, name: str) -> None:
        self.service.release(self.users[name])

    @rule(name=who, last=st.booleans())
    def an_admin_decides(self, name: str, last: bool) -> None:
        if not self.tabs[name]:
            return
        try:
            key = self.tabs[name][-1 if last else 0]
            self.service.adjudicate(self.admin, key, 0, None, self.token())
        except Refused as error:
            assert error.code == "not_found"  # a gold item

    @rule(seconds=st.sampled_from([LEASE / 2, LEASE]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(late=who, other=who)
    def a_lease_ends_and_another_asks(self, late: str, other: str) -> None:
        """The steps that most mistakes need, more often than chance would put them together."""
        self.asks(late)
        self.clock.now += LEASE
        self.asks(other)

    def tries(self, name: str, last: bool, action: Any) -> None:
        if not self.tabs[name]:
            self.asks(name)
        if self.tabs[name]:
            try:
                action(self.tabs[name][-1 if last else 0])
            except Refused as error:
                assert error.code in ("already_voted", "already_skipped", "lease_lost"), error

    @invariant()
    def nothing_is_given_out_too_often(self) -> None:
        if not hasattr(self, "store"):
            return
        with self.store.read() as connection:
            given = connection.execute(select(assignments)).all()
            counted = connection.execute(select(pairs).where(pairs.c.role == "work")).all()
            log = connection.execute(select(events).order_by(events.c.id)).all()
            people = connection.execute(select(users)).all()
        voted = Counter(row.pair_n for row in given if row.state == "voted")
        leases = [row for row in given if row.state == "leased" and row.expires > self.clock.now]
        held = Counter(row.pair_n for row in leases)
        for row in counted:
            assert row.votes == voted[row.n]
            assert voted[row.n] + held[row.n] <= row.wanted
            assert row.open == (row.votes < row.wanted and row.adjudicated is None)
        assert max(Counter(row.user_id for row in leases).values(), default=0) <= 1
        # the log, read from its beginning, says what stands
        stands: dict[tuple[int, int], tuple[str, int]] = {}
        for entry in log:
            place = (entry.user_id, entry.pair_n)
            if entry.kind == "adjudicate":
                continue
            if entry.kind == "undo":
                assert stands.pop(place)[1] == entry.of_event
            else:
                assert place not in stands
                stands[place] = (entry.kind, entry.id)
        kinds = {"voted": "vote", "skipped": "skip"}
        now = {(r.user_id, r.pair_n): (kinds[r.state], r.event_id) for r in given if r.state in kinds}
        assert now == stands
        for person in people:
            own = [kind for (user, _), (kind, _) in stands.items() if user == person.id]
            assert (person.votes, person.skips) == (own.count("vote"), own.count("skip"))

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        self.finish()
        self.store.close()
        self.folder.cleanup()

    def finish(self) -> None:
        """Enough people who vote on all that they are given leave no pair that anybody could vote on."""
        self.clock.now += 10 * LEASE
        for name in LABELERS:
            while isinstance(found := self.service.next_task(self.users[name]), Task):
                self.service.vote(self.users[name], found.pair, Answers("A"), self.token())
        self.nothing_is_given_out_too_often()
        with self.store.read() as connection:
            waiting = connection.scalars(select(pairs.c.n).where(pairs.c.open == 1)).all()
            settled = select(assignments.c.pair_n).where(assignments.c.state != "leased")
            counts = Counter(connection.scalars(settled))
        # what is still open was voted on or skipped by all three
        assert all(counts[n] == len(LABELERS) for n in waiting)


TestLabelling = Labelling.TestCase
TestLabelling.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
