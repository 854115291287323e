"""What an annotation project can do, for pages, the HTTP API and the command line alike.

Every method may be called from any thread. What a labeler's request changes is on disk when the method
returns. A request that changes something brings a ``token`` of the client's own making: the same request with
the same token is done once, and gets the same answer again, so a client may simply ask again after an answer
that was lost. Refusals are ``apps.annotate.errors.Refused``.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, and_, func, select, update

from apps.annotate import assign, exports, queue, stats, votes
from apps.annotate.accounts import Accounts, User
from apps.annotate.assign import Lease, Rules
from apps.annotate.errors import conflict, forbidden, invalid, not_found
from apps.annotate.marks import sentences
from apps.annotate.passwords import COST, Cost
from apps.annotate.pictures import etag_of, picture_of
from apps.annotate.results import (
    Answers,
    Disputed,
    Kept,
    LabelerRow,
    NoTask,
    Picture,
    Progress,
    Shown,
    Side,
    Task,
    Turn,
)
from apps.annotate.store import Store, get_setting, put_setting
from apps.annotate.tables import Found, assignments, events, pairs, users
from data.schema import Preference

T = TypeVar("T")
SIDES: tuple[Side, Side] = ("A", "B")
#: of a project without one of its own, and the most characters of one
TITLE, LONGEST_TITLE = "align", 60
#: in which labelers are told of the project's progress, where there are gold items
_STEPS = 20
#: longest time a browser may tell, in seconds; labeler.js tells no longer one
_LONGEST = 7 * 86400.0


class Service:
    """One project: its store, its rules, its images."""

    def __init__(
        self,
        store: Store,
        *,
        images: Path | None = None,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        cost: Cost = COST,
    ) -> None:
        """``images``: the image root. ``clock`` gives seconds since the epoch; ``rng`` draws what is A."""
        self.store, self.images = store, images
        self.accounts = Accounts(store, clock, cost)
        self._clock, self._rng = clock, rng or random.SystemRandom()
        self._secret: str = store.write(_secret)

    @property
    def rules(self) -> Rules:
        """The project's rules as they stand in the store: another process may have changed them."""
        with self.store.read() as connection:
            return _rules(connection)

    def set_rules(self, changes: Mapping[str, Any]) -> Rules:
        """Change some of the project's rules. They are kept, and hold from the next request on, in every
        process that serves the store. Raises Refused for values that make no sense.
        """

        def work(connection: Connection) -> Rules:
            rules = replace(_rules(connection), **changes)
            put_setting(connection, "rules", asdict(rules))
            return rules

        return self.store.write(work)

    @property
    def title(self) -> str:
        """What the project is called on its pages."""
        return str(self.store.setting("title") or TITLE)

    def set_title(self, text: str) -> None:
        """Call the project so; it is kept. Raises Refused for a name that does not fit into a line."""
        title = " ".join(text.split())
        if not title.isprintable() or not 1 <= len(title) <= LONGEST_TITLE:
            raise invalid(f"a project's title has 1 to {LONGEST_TITLE} characters, all of which can be seen")
        self.store.write(lambda connection: put_setting(connection, "title", title))

    # --- labelers ---

    def next_task(self, user: User) -> Task | NoTask:
        """The pair that the labeler holds, or else the next one; or why there is none."""
        return self.store.write(lambda connection: self._next(connection, user))

    def _next(self, connection: Connection, user: User) -> Task | NoTask:
        now, rules = self._clock(), _rules(connection)
        found = assign.next_pair(connection, user.id, rules, now, self._secret, self._rng)
        return found if isinstance(found, NoTask) else self._task(connection, user, found, now)

    def vote(self, user: User, pair: str, answers: Answers, token: str, seconds: float | None = None) -> Kept:
        """Keep a vote. ``seconds``: from the pair's showing to the answer, as the browser measured.

        Raises:
            Refused: the pair was not given to the labeler (404); it was settled already, its time ran out and
                somebody else has it, or the token stands for another request (409); odd answers (422).
        """
        given = (user, pair, answers, token, seconds)
        return self.store.write(lambda connection: self._vote(connection, *given))

    def vote_and_next(
        self, user: User, pair: str, answers: Answers, token: str, seconds: float | None = None
    ) -> tuple[Kept, Task | NoTask]:
        """``vote`` and ``next_task`` in one step."""

        def work(connection: Connection) -> tuple[Kept, Task | NoTask]:
            kept = self._vote(connection, user, pair, answers, token, seconds)
            return kept, self._next(connection, user)

        return self.store.write(work)

    def _vote(
        self,
        connection: Connection,
        user: User,
        pair: str,
        answers: Answers,
        token: str,
        seconds: float | None,
    ) -> Kept:
        given = assign.assignment(connection, user.id, pair)
        values = votes.by_index(answers, bool(given.flipped), given.record)
        if repeated := votes.repeated(connection, user, given.n, token, "vote", values):
            graded = assign.labeler(connection, user.id).qualification
            return replace(repeated, qualification=graded if given.role == assign.QUALIFICATION else None)
        if seconds is not None and not 0 <= seconds <= _LONGEST:
            raise invalid("seconds is a number from 0, or left out")
        now = self._clock()
        assign.check_place(connection, user.id, given, now)
        times = {"seconds_browser": seconds, "seconds_server": max(0.0, now - given.served)}
        values |= {"at": now, "token": token, **times}
        number = assign.settle(connection, user.id, given, assign.VOTED, values)
        graded = None
        if given.role == assign.QUALIFICATION:
            graded = assign.grade(connection, user.id, _rules(connection), self._secret)
        return Kept(number, False, graded)

    def skip(self, user: User, pair: str, reason: str, token: str, note: str = "") -> Kept:
        """Leave a pair to others; it does not come back to this labeler.

        Raises:
            Refused: as ``vote`` does; an item of the test (409); an odd reason, "other" without a note (422).
        """
        told = votes.reason_of(reason, note)

        def work(connection: Connection) -> Kept:
            given = assign.assignment(connection, user.id, pair)
            if repeated := votes.repeated(connection, user, given.n, token, "skip", {"reason": told}):
                return repeated
            if given.role == assign.QUALIFICATION:
                raise conflict("test", "the items of the test cannot be skipped")
            now = self._clock()
            assign.check_place(connection, user.id, given, now)
            values = {"at": now, "token": token, "reason": told, "seconds_server": now - given.served}
            return Kept(assign.settle(connection, user.id, given, assign.SKIPPED, values), False)

        return self.store.write(work)

    def undo(self, user: User, token: str) -> Task:
        """Take back the labeler's last vote or skip that stands; its pair comes back, with what was said.

        Raises:
            Refused: nothing to take back, the test is over, the pair was adjudicated, or others have given
                the votes that it still wanted (409).
        """

        def work(connection: Connection) -> Task:
            now = self._clock()
            known = votes.by_token(connection, user, token, "undo")
            last = known.of_event if known is not None else votes.last(connection, user)
            if last is None:
                raise conflict("nothing_to_undo", "there is nothing to take back")
            said = connection.execute(select(events).where(events.c.id == last)).one()
            key = str(connection.scalar(select(pairs.c.key).where(pairs.c.n == said.pair_n)))
            given = assign.assignment(connection, user.id, key)
            if known is None:
                self._check_undo(connection, user, given, now)
                assign.take_back(connection, user.id, given, last, _rules(connection), now, token)
            held = assign.held_by(connection, user.id, now)
            if held is None or held.n != said.pair_n:
                raise conflict("nothing_to_undo", "it was taken back before, and settled again")
            return replace(self._task(connection, user, held, now), before=votes.by_side(said))

        return self.store.write(work)

    def _check_undo(self, connection: Connection, user: User, given: Found, now: float) -> None:
        if given.role == assign.QUALIFICATION and assign.labeler(connection, user.id).qualification:
            raise conflict("nothing_to_undo", "the test is over")
        if given.adjudicated is not None:
            raise conflict("nothing_to_undo", "the pair has been decided meanwhile")
        if given.state == assign.SKIPPED and not assign.has_room(connection, user.id, given.n, now):
            raise conflict("nothing_to_undo", "others have the pair that you skipped")

    def renew(self, user: User, pair: str) -> float:
        """Hold the pair for a full lease again; returns its seconds. Raises Refused as ``vote`` does."""

        def work(connection: Connection) -> float:
            given, now = assign.assignment(connection, user.id, pair), self._clock()
            assign.check_place(connection, user.id, given, now)
            held = assign.held_by(connection, user.id, now)
            if held is not None and held.n != given.n:
                raise conflict("lease_lost", "you hold another pair now")
            lease = _rules(connection).lease
            assign.hold(connection, user.id, given.n, given.served, now + lease)
            return lease

        return self.store.write(work)

    def release(self, user: User) -> None:
        """Give back the pair that the labeler holds: for a page that is being closed."""
        self.store.write(lambda connection: assign.release(connection, user.id, self._clock()))

    def progress(self, user: User) -> Progress:
        """How far the labeler is, and the project."""
        with self.store.read(snapshot=True) as connection:
            me, rules = assign.labeler(connection, user.id), _rules(connection)
            test = assign.test_items(connection, user.id, rules, self._secret)
            counted = select(func.count(), func.sum(pairs.c.open)).where(pairs.c.role == assign.WORK)
            total, still = connection.execute(counted).one()
            done, step = total - int(still or 0), 1
            if connection.scalar(select(pairs.c.n).where(pairs.c.role == assign.GOLD).limit(1)) is not None:
                # a vote that ends no pair where others do would tell the gold items
                step = -(-total // _STEPS)
            return Progress(
                votes=me.votes,
                skips=me.skips,
                limit=assign.limit_of(me, rules),
                qualification=me.qualification,
                test_answered=len(assign.settled_of(connection, user.id, test)) if test else 0,
                test_items=len(test),
                test_pass=assign.right_to_pass(rules, len(test)),
                pairs_done=done if done == total else done - done % step,
                pairs=total,
            )

    def picture(self, user: User, pair: str, known: str | None = None) -> Picture | None:
        """The image of a pair that was given to the labeler; admins see all. None: it is still ``known``.

        Raises:
            Refused: no such pair, not the labeler's, or no image that can be shown (404).
        """
        image = Preference.model_validate_json(self._record_of(user, pair)).image
        if image is not None and known is not None and etag_of(image, self.images) == known:
            return None
        return picture_of(image, self.images)

    def _record_of(self, user: User, pair: str) -> str:
        query = select(pairs.c.record).where(pairs.c.key == pair)
        if user.role != "admin":
            mine = and_(assignments.c.pair_n == pairs.c.n, assignments.c.user_id == user.id)
            query = query.join(assignments, mine)
        with self.store.read() as connection:
            found = connection.scalar(query)
        if found is None:
            raise not_found("no such picture")
        return str(found)

    def _task(self, connection: Connection, user: User, lease: Lease, now: float) -> Task:
        record = Preference.model_validate_json(lease.record)
        number = of = None
        if lease.role == assign.QUALIFICATION:
            test = assign.test_items(connection, user.id, _rules(connection), self._secret)
            number, of = len(assign.settled_of(connection, user.id, test)) + 1, len(test)
        texts = [response.text for response in record.responses]
        order = texts[::-1] if lease.flipped else texts
        return Task(
            pair=lease.key,
            has_image=record.image is not None,
            messages=turns_of(record),
            responses=[Shown(side, text, sentences(text)) for side, text in zip(SIDES, order)],
            seconds_left=max(0.0, lease.expires - now),
            stage="work" if of is None else "qualification",
            number=number,
            of=of,
        )

    # --- admins ---

    def overview(self) -> dict[str, Any]:
        """See ``apps.annotate.stats.overview``."""
        with self.store.read(snapshot=True) as connection:
            return stats.overview(connection, self._clock())

    def labelers(self) -> list[LabelerRow]:
        """One row an account."""
        with self.store.read(snapshot=True) as connection:
            return stats.labelers(connection, _rules(connection).limit)

    def agreement(self, n_boot: int = 1000) -> dict[str, Any]:
        """See ``apps.annotate.stats.agreement``."""
        with self.store.read(snapshot=True) as connection:
            return stats.agreement(connection, n_boot=n_boot)

    def bias(self) -> dict[str, Any]:
        """See ``apps.annotate.stats.bias``."""
        with self.store.read(snapshot=True) as connection:
            return stats.bias(connection)

    def export_sizes(self) -> dict[str, dict[str, int]]:
        """See ``apps.annotate.exports.sizes``."""
        with self.store.read(snapshot=True) as connection:
            return exports.sizes(connection)

    def disputed(self, after: int = 0, limit: int = 20) -> tuple[int, list[Disputed]]:
        """How many pairs wait for an adjudication, and those that follow number ``after``."""
        with self.store.read(snapshot=True) as connection:
            return queue.disputed(connection, after, limit)

    def adjudicate(
        self,
        admin: User,
        pair: str,
        hallucination: int | None,
        helpfulness: int | None,
        token: str,
        note: str = "",
    ) -> Kept:
        """Decide a pair, by response index in the data's order (None: a tie); a later decision replaces it.

        Raises:
            Refused: no admin (403), no such pair (404), odd choices (422), a token used otherwise (409).
        """
        if admin.role != "admin":
            raise forbidden("adjudicating is for admins")
        values = votes.decision(hallucination, helpfulness, note)

        def work(connection: Connection) -> Kept:
            return queue.adjudicate(connection, admin, pair, values, token, self._clock())

        return self.store.write(work)

    def set_labeler(self, name: str, *, limit: int | None = None, retake: bool = False) -> None:
        """A labeler's own limit (-1: the project's again), or the test once more. Raises Refused."""

        def work(connection: Connection) -> None:
            user = self.accounts.find(connection, name)
            if limit is not None:
                value = None if limit < 0 else limit
                connection.execute(update(users).where(users.c.id == user.id).values(vote_limit=value))
            if retake:
                assign.retake(connection, user.id)

        self.store.write(work)


def turns_of(record: Preference) -> list[Turn]:
    """The conversation without system turns, which may name a model."""
    return [Turn(m.role, m.content) for m in record.messages if m.role != "system"]


def _rules(connection: Connection) -> Rules:
    """Read anew by each request, which costs little beside its other statements."""
    return Rules(**(get_setting(connection, "rules") or {}))


def _secret(connection: Connection) -> str:
    """Decides orders that labelers must not foresee; made once for a store."""
    found = get_setting(connection, "secret")
    if found is None:
        found = secrets.token_hex(16)
        put_setting(connection, "secret", found)
    return str(found)
