"""Who may come in: accounts, invitations, sessions, and a limit on guesses.

Codes of invitations and tokens of sessions have 256 random bits, so a plain SHA-256 of them is stored: there
is nothing to guess that a slow hash would protect, as there is with passwords (``apps.annotate.passwords``).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from apps.annotate.errors import Refused, conflict, forbidden, invalid, not_found
from apps.annotate.passwords import (
    COST,
    ROLES,
    Cost,
    check_password,
    hash_password,
    name_fault,
    password_fault,
)
from apps.annotate.store import Store, new_id
from apps.annotate.tables import Found, invitations, sessions, users

#: seconds
IDLE, LONGEST_SESSION = 12 * 3600.0, 7 * 24 * 3600.0
DAY = 24 * 3600.0
#: a session's last use is written down no more often than this
_SEEN_EVERY = 60.0
#: failed guesses within WINDOW seconds, of one account and from one address
BY_ACCOUNT, BY_ADDRESS, WINDOW = 10, 30, 15 * 60.0
SESSION = (
    select(sessions, users.c.id, users.c.name, users.c.role, users.c.disabled)
    .join(users, users.c.id == sessions.c.user_id)
    .where(sessions.c.token_hash == bindparam("hash"))
)
_WRONG = "the name or the password is wrong"
#: hexadecimal digits of a code's hash that name its invitation; nothing leads from them to the code
_NAMING = 10


@dataclass(frozen=True)
class User:
    id: int
    name: str
    #: "labeler" or "admin"
    role: str


@dataclass(frozen=True)
class Session:
    user: User
    #: goes into the header X-CSRF-Token of every request that changes something
    csrf: str
    #: seconds since the epoch
    expires: float


@dataclass(frozen=True)
class SignedIn:
    #: the cookie's value; it is shown once and stored as a hash
    token: str
    session: Session


@dataclass(frozen=True)
class Invitation:
    """As it was made. The code is shown once and stored as a hash."""

    code: str
    role: str
    uses: int
    #: seconds since the epoch
    expires: float

    @property
    def id(self) -> str:
        return _sha(self.code)[:_NAMING]


@dataclass(frozen=True)
class OpenInvitation:
    """One by which somebody can still come in, without its code."""

    id: str
    role: str
    uses_left: int
    #: seconds since the epoch
    created: float
    expires: float


class Guesses:
    """Guesses by account and by address, in memory: a restart forgives.

    A guess counts as failed from its beginning until it is known to be right, so that many at once do not
    get past the limit together.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failed: dict[tuple[str, str], deque[float]] = {}
        self._lock = threading.Lock()

    def begin(self, account: str | None, address: str) -> None:
        """Count a guess (None: not of an account). Raises Refused (429) after too many lately."""
        limits = {("address", address): BY_ADDRESS}
        if account is not None:
            limits["account", account] = BY_ACCOUNT
        now = self._clock()
        with self._lock:
            if len(self._failed) > 10_000:  # somebody tries many names: forget those that are over
                for key in list(self._failed):
                    self._recent(key, now)
            for key, most in limits.items():
                failed = self._recent(key, now)
                if len(failed) >= most:
                    wait = failed[0] + WINDOW - now
                    message = f"too many failed attempts; try again in {max(1, round(wait / 60))} minutes"
                    raise Refused("too_many", message, 429, wait=wait)
            for key, most in limits.items():
                self._failed.setdefault(key, deque(maxlen=most)).append(now)

    def right(self, account: str | None, address: str) -> None:
        """The guess was none: forget the account's, and this one of the address."""
        with self._lock:
            if account is not None:
                self._failed.pop(("account", account), None)
            if failed := self._failed.get(("address", address)):
                failed.pop()

    def _recent(self, key: tuple[str, str], now: float) -> deque[float]:
        failed = self._failed.get(key, deque())
        while failed and failed[0] <= now - WINDOW:
            failed.popleft()
        if not failed:
            self._failed.pop(key, None)
        return failed


class Accounts:
    """Accounts and sessions of one store."""

    def __init__(self, store: Store, clock: Callable[[], float], cost: Cost = COST) -> None:
        self._store, self._clock, self._cost = store, clock, cost
        self.guesses = Guesses(clock)

    @cached_property
    def _nobody(self) -> str:
        """Checked for unknown names, which must take as long as a wrong password."""
        return hash_password(secrets.token_hex(8), self._cost)

    # --- accounts ---

    def add(self, name: str, password: str, role: str = "labeler") -> User:
        """A new account. Raises Refused for a bad name, password or role, or a name that is taken."""
        hashed = self._hashed(name, password, role)
        return self._store.write(lambda connection: self._insert(connection, name, hashed, role))

    def put(self, rows: list[tuple[str, str, str]]) -> None:
        """Accounts (name, role, hash) of a password file: new ones, or another password for those there are.

        Sessions of an account whose role or password changes end.
        """

        def work(connection: Connection) -> None:
            for name, role, hashed in rows:
                found = connection.execute(select(users).where(users.c.name == name)).first()
                if found is None:
                    self._insert(connection, name, hashed, role)
                elif (found.role, found.password) != (role, hashed):
                    changed = update(users).where(users.c.id == found.id)
                    connection.execute(changed.values(role=role, password=hashed))
                    connection.execute(delete(sessions).where(sessions.c.user_id == found.id))

        self._store.write(work)

    def change(self, name: str, *, password: str | None = None, disabled: bool | None = None) -> None:
        """Another password, or shut out or let in again; the account's sessions end.

        Raises:
            Refused: no such account, or a bad password.
        """
        values: dict[str, Any] = {}
        if password is not None:
            if fault := password_fault(password):
                raise invalid(fault)
            values["password"] = hash_password(password, self._cost)
        if disabled is not None:
            values["disabled"] = int(disabled)

        def work(connection: Connection) -> None:
            user = self.find(connection, name)
            connection.execute(update(users).where(users.c.id == user.id).values(**values))
            connection.execute(delete(sessions).where(sessions.c.user_id == user.id))

        self._store.write(work)

    def find(self, connection: Connection, name: str) -> User:
        """The account of that name. Raises Refused (404) for none."""
        found = connection.execute(select(users.c.id, users.c.role).where(users.c.name == name)).first()
        if found is None:
            raise not_found(f"no account {name!r}")
        return User(found.id, name, found.role)

    def count(self, role: str | None = None) -> int:
        """Accounts that may come in, of one role or of any."""
        query = select(func.count()).select_from(users).where(users.c.disabled == 0)
        with self._store.read() as connection:
            return int(connection.scalar(query if role is None else query.where(users.c.role == role)) or 0)

    def _hashed(self, name: str, password: str, role: str) -> str:
        if fault := name_fault(name) or password_fault(password):
            raise invalid(fault)
        if role not in ROLES:
            raise invalid(f"the role is {role!r}, not one of {', '.join(ROLES)}")
        return hash_password(password, self._cost)

    def _insert(self, connection: Connection, name: str, hashed: str, role: str) -> User:
        if connection.scalar(select(users.c.id).where(users.c.name == name)) is not None:
            raise conflict("name_taken", f"the name {name!r} is taken; choose another")
        values = {"name": name, "role": role, "password": hashed, "created": self._clock()}
        made = connection.execute(insert(users).values(**values))
        return User(new_id(made), name, role)

    # --- invitations ---

    def invite(self, role: str = "labeler", uses: int = 1, days: float = 7.0) -> Invitation:
        """A code by which so many people can make themselves accounts. Raises Refused for odd values."""
        if role not in ROLES or not 1 <= uses <= 10_000 or not 0 < days <= 366:
            raise invalid(f"an invitation is for {' or '.join(ROLES)}, 1 to 10000 people and up to 366 days")
        code, now = secrets.token_urlsafe(32), self._clock()
        made = Invitation(code, role, uses, now + days * DAY)

        def work(connection: Connection) -> None:
            connection.execute(delete(invitations).where(invitations.c.expires <= now))
            values = {"role": role, "created": now, "expires": made.expires, "uses_left": uses}
            connection.execute(insert(invitations).values(code_hash=_sha(code), **values))

        self._store.write(work)
        return made

    def invitations(self) -> list[OpenInvitation]:
        """Those by which somebody can still come in, the newest first."""
        open_ = (invitations.c.uses_left > 0) & (invitations.c.expires > self._clock())
        query = select(invitations).where(open_).order_by(invitations.c.created.desc())
        with self._store.read() as connection:
            found = connection.execute(query).all()
        return [
            OpenInvitation(row.code_hash[:_NAMING], row.role, row.uses_left, row.created, row.expires)
            for row in found
        ]

    def revoke(self, named: str) -> None:
        """End the invitation of that id; accounts that it made stay. Raises Refused (404) for none."""
        gone = delete(invitations).where(func.substr(invitations.c.code_hash, 1, _NAMING) == named)
        if not self._store.write(lambda connection: connection.execute(gone).rowcount):
            raise not_found(f"no invitation {named!r}; it may be over, or revoked already")

    def join(
        self, code: str, name: str, password: str, address: str, replaces: str | None = None
    ) -> SignedIn:
        """Make an account by an invitation, and come in; the session of the token ``replaces`` ends.

        Raises:
            Refused: the code is unknown, used up, revoked or too old (403); a bad or taken name, or a bad
                password; too many tries with wrong codes (429).
        """
        self.guesses.begin(None, address)
        with self._store.read() as connection:
            known = self._invitation(connection, code) is not None
        if not known:
            raise forbidden("the invitation is unknown, used up, revoked or too old; ask for another")
        self.guesses.right(None, address)
        hashed = self._hashed(name, password, ROLES[0])

        def work(connection: Connection) -> SignedIn:
            found = self._invitation(connection, code)
            if found is None:
                raise forbidden("the invitation is used up or revoked; ask for another")
            left = update(invitations).where(invitations.c.code_hash == found.code_hash)
            connection.execute(left.values(uses_left=found.uses_left - 1))
            self._end(connection, replaces)
            return self._begin(connection, self._insert(connection, name, hashed, found.role))

        return self._store.write(work)

    def _invitation(self, connection: Connection, code: str) -> Found | None:
        found = connection.execute(select(invitations).where(invitations.c.code_hash == _sha(code))).first()
        if found is None or found.uses_left < 1 or found.expires <= self._clock():
            return None
        return found

    # --- sessions ---

    def sign_in(self, name: str, password: str, address: str, replaces: str | None = None) -> SignedIn:
        """Come in by password; always a new session, and the one of the token ``replaces`` ends.

        Raises:
            Refused: a wrong name or password, a disabled account (401, all alike); too many failures (429).
        """
        self.guesses.begin(name, address)
        with self._store.read() as connection:
            found = connection.execute(select(users).where(users.c.name == name)).first()
        right = check_password(password[:1000], self._nobody if found is None else found.password)
        if found is None or not right or found.disabled:
            raise Refused("unauthorized", _WRONG, 401)
        self.guesses.right(name, address)
        user = User(found.id, found.name, found.role)

        def work(connection: Connection) -> SignedIn:
            self._end(connection, replaces)
            return self._begin(connection, user)

        return self._store.write(work)

    def _end(self, connection: Connection, token: str | None) -> None:
        """End the session of a token, and those that are over anyhow."""
        old = sessions.c.created <= self._clock() - LONGEST_SESSION
        if token is not None:
            old = old | (sessions.c.token_hash == _sha(token))
        connection.execute(delete(sessions).where(old))

    def _begin(self, connection: Connection, user: User) -> SignedIn:
        token, csrf, now = secrets.token_urlsafe(32), secrets.token_urlsafe(32), self._clock()
        values = {"user_id": user.id, "csrf": csrf, "created": now, "seen": now}
        connection.execute(insert(sessions).values(token_hash=_sha(token), **values))
        return SignedIn(token, Session(user, csrf, now + IDLE))

    def session(self, token: str | None) -> Session:
        """The session of a cookie's value. Raises Refused (401) for none, or one that is over."""
        over = Refused("unauthorized", "sign in first", 401)
        if not token:
            raise over
        with self._store.read() as connection:
            found = connection.execute(SESSION, {"hash": _sha(token)}).first()
        now = self._clock()
        if found is None or found.disabled:
            raise over
        if now >= min(found.seen + IDLE, found.created + LONGEST_SESSION):
            raise Refused("unauthorized", "the session is over; sign in again", 401)
        if now > found.seen + _SEEN_EVERY:
            mark = update(sessions).where(sessions.c.token_hash == found.token_hash).values(seen=now)
            self._store.write(lambda connection: connection.execute(mark).rowcount)
        expires = min(now + IDLE, found.created + LONGEST_SESSION)
        return Session(User(found.id, found.name, found.role), found.csrf, expires)

    def sign_out(self, token: str) -> None:
        """End the session of a cookie's value."""
        gone = delete(sessions).where(sessions.c.token_hash == _sha(token))
        self._store.write(lambda connection: connection.execute(gone).rowcount)


def check_csrf(session: Session, given: str | None) -> None:
    """Raise Refused (403) unless the request brings the session's own token."""
    if given is None or not hmac.compare_digest(given.encode(), session.csrf.encode()):
        raise forbidden("the request does not bring the session's token (X-CSRF-Token); reload the page")


def _sha(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
