"""Where an annotation project lives: SQLite by default, PostgreSQL by URL, the same code for both.

SQLite runs in WAL mode with ``synchronous=FULL``. In that mode the default, NORMAL, syncs the log at
checkpoints only: a commit would return while the vote is still in the operating system's memory, and a power
cut would lose a vote whose labeler was told that it is kept. FULL syncs at every commit. For the same reason
a connection to PostgreSQL sets ``synchronous_commit`` to on, whatever the server's default is.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from sqlalchemy import (
    Connection,
    CursorResult,
    Engine,
    bindparam,
    create_engine,
    event,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from apps.annotate.errors import StoreError
from apps.annotate.tables import VERSION, schema_version, settings, tables
from data.files import replacing_bytes

T = TypeVar("T")

#: seconds to wait for another process that writes
BUSY = 15.0
#: any number, the same in every process: writers of PostgreSQL take turns by it
_TURN = 0x616C69676E
#: jobs that share one commit at most
_BATCH = 64
_ABSENT = (
    "give --store the URL that serve was given, such as sqlite:///runs/annotate/votes.db, or make one "
    "(align annotate import)"
)
_SETTING = select(settings.c.value).where(settings.c.name == bindparam("name"))


def parse_url(text: str) -> URL:
    """A store's URL. Raises StoreError for one that is none, or names another kind of database."""
    mend = "give sqlite:///FILE or postgresql://USER@HOST/NAME"
    try:
        url = make_url(text)
    except ArgumentError:
        raise StoreError(f"{text!r} is no store; {mend}") from None
    kind = url.get_backend_name()
    if kind == "sqlite":
        if not url.database or url.database == ":memory:":
            raise StoreError(f"{text}: a store in memory would lose the votes; {mend}")
        return url.set(drivername="sqlite")
    if kind == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    raise StoreError(f"{kind!r} is no kind of store; {mend}")


def shown(url: URL) -> str:
    """A URL without its password."""
    return url.render_as_string(hide_password=True)


def without_password(url: URL) -> str:
    """A URL as ``--store`` takes it, with no password in it, nor one among its options."""
    options = url.difference_update_query(["password", "sslpassword"]).query
    place = (url.username, None, url.host, url.port, url.database, options)
    return URL.create(url.get_backend_name(), *place).render_as_string()


def make_engine(url: URL) -> Engine:
    """An engine whose connections keep what they commit. Raises StoreError where the driver is missing."""
    try:
        if url.get_backend_name() == "sqlite":
            engine = create_engine(url, connect_args={"timeout": BUSY}, pool_size=8, max_overflow=64)
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        else:
            engine = create_engine(url, pool_size=8, max_overflow=16, pool_pre_ping=True)
            event.listen(engine, "connect", _prepare_postgresql)
            event.listen(engine, "begin", _begin_postgresql)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        rule = f"{shown(url)}: the driver is missing ({error})"
        raise StoreError(f"{rule}; pip install 'align-lmm[postgres]'") from None
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    # transactions are begun by ``_begin_sqlite``, not by Python's driver
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    # a writer that first reads and then finds that another has written could only give up
    write = connection.get_execution_options().get("write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _prepare_postgresql(connection: Any, _record: Any) -> None:
    connection.execute("SET synchronous_commit = on")
    connection.commit()


def _begin_postgresql(connection: Connection) -> None:
    if connection.get_execution_options().get("write"):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_TURN})")


class _Job(Generic[T]):
    """Work that waits for its turn, and then what came of it."""

    def __init__(self, work: Callable[[Connection], T]) -> None:
        self.work, self.finished = work, False
        self.result: Any = None
        self.error: BaseException | None = None


class Store:
    """An open store. Threads may share it; several processes may open the same one."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self.engine = make_engine(url)
        self._queue: list[_Job[Any]] = []
        self._queued, self._turn = threading.Lock(), threading.Lock()

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @contextlib.contextmanager
    def read(self, *, snapshot: bool = False) -> Iterator[Connection]:
        """A transaction that reads; all its statements see one state with ``snapshot`` (SQLite: always)."""
        with self.engine.connect() as connection:
            if snapshot and not self.is_sqlite:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    def write(self, work: Callable[[Connection], T]) -> T:
        """Do ``work`` in a transaction that writes, and return what it returns once that is on disk.

        Writers take turns. Those that waited meanwhile share one transaction, and so one wait for the
        disk, each behind a savepoint of its own: one that raises is taken back alone.

        Raises:
            Whatever ``work`` raises, or DBAPIError where the commit fails; nothing of it is kept then.
        """
        job = _Job(work)
        with self._queued:
            self._queue.append(job)
        with self._turn:
            if not job.finished:
                with self._queued:
                    batch, self._queue = self._queue[:_BATCH], self._queue[_BATCH:]
                if job not in batch:  # behind more than a batch
                    self._queue.remove(job)
                    batch.append(job)
                self._carry_out(batch)
        if job.error is not None:
            raise job.error
        return job.result

    def _carry_out(self, batch: list[_Job[Any]]) -> None:
        """All jobs in one transaction; where the database itself stumbles, each in one of its own.

        SQLite takes back the whole transaction for some errors (a full disk), and would then let the rest of
        a batch look well: so no other job of a batch is believed after such an error.
        """
        commits = False
        try:
            with self.engine.connect().execution_options(write=True) as connection, connection.begin():
                if len(batch) == 1:
                    batch[0].result = batch[0].work(connection)
                else:
                    _each(connection, batch)
                commits = True
        except BaseException as error:  # for the callers, in ``write``
            if len(batch) > 1 and not commits and isinstance(error, Exception):
                for job in batch:
                    job.error = None
                    self._carry_out([job])
                return
            for job in batch:
                job.error = job.error or error
        for job in batch:
            job.finished = True

    def setting(self, name: str) -> Any:
        """The JSON value of a setting of the project; None where it was never set."""
        with self.read() as connection:
            return get_setting(connection, name)

    def check_output(self, path: Path) -> None:
        """Raise StoreError for a file to be written that is the store itself: its votes would be gone."""
        if not self.is_sqlite:
            return
        own = Path(str(self.url.database)).resolve()
        if path.resolve() in (own, *(own.with_name(own.name + end) for end in ("-wal", "-shm", "-journal"))):
            raise StoreError(f"{path}: is the store itself; choose another file")

    def close(self) -> None:
        self.engine.dispose()


def _each(connection: Connection, batch: list[_Job[Any]]) -> None:
    for job in batch:
        try:
            with connection.begin_nested():
                job.result = job.work(connection)
        except ValueError as error:  # the service's own refusals
            job.error = error


def new_id(made: CursorResult[Any]) -> int:
    """The number of a row that was inserted."""
    key = made.inserted_primary_key
    assert key is not None
    return int(key[0])


def get_setting(connection: Connection, name: str) -> Any:
    """See ``Store.setting``."""
    found = connection.scalar(_SETTING, {"name": name})
    return None if found is None else json.loads(found)


def put_setting(connection: Connection, name: str, value: Any) -> None:
    """Set a setting to a JSON value."""
    text = json.dumps(value)
    if connection.execute(update(settings).where(settings.c.name == name).values(value=text)).rowcount == 0:
        connection.execute(insert(settings).values(name=name, value=text))


def open_store(text: str, *, create: bool = False) -> Store:
    """Open the store of a URL; ``create`` makes one that is not there. Older ones are brought up to date.

    Raises:
        StoreError: no store there, one of a later version, another's database, or one that cannot be reached.
    """
    from apps.annotate.migrations import bring_up_to_date

    url = parse_url(text)
    if url.get_backend_name() == "sqlite":
        _check_file(Path(str(url.database)), create)
    store = Store(url)
    try:
        names = set(inspect(store.engine).get_table_names())
        if "schema_version" in names:
            bring_up_to_date(store)
        elif names & set(tables.tables):
            raise StoreError(f"{shown(url)}: holds tables of another program; name another database")
        elif not create:
            raise StoreError(f"{shown(url)}: no store there; {_ABSENT}")
        else:
            store.write(_create)
    except DBAPIError as error:
        store.close()
        raise StoreError(f"{shown(url)}: cannot be used ({_first_line(error)}); check the URL") from None
    except StoreError:
        store.close()
        raise
    return store


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__


def _check_file(path: Path, create: bool) -> None:
    if path.exists():
        return
    if not create:
        raise StoreError(f"{path}: no store there; {_ABSENT}")
    path.parent.mkdir(parents=True, exist_ok=True)
    # hashes of passwords will be in it; the files beside it get the same permissions
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


def _create(connection: Connection) -> None:
    # another process may have been first
    if not inspect(connection).has_table("schema_version"):
        tables.create_all(connection)
        connection.execute(insert(schema_version).values(version=VERSION))


def backup(store: Store, path: Path) -> Path:
    """Copy an SQLite store to a file while others go on writing; whole or not at all.

    Raises:
        StoreError: PostgreSQL (its own tool does that), a copy that is damaged, or the store itself.
    """
    if not store.is_sqlite:
        # pg_dump asks for a password, or finds it where PostgreSQL's programs look for one
        place = shlex.quote(without_password(store.url))
        command = f"pg_dump --format=custom --file={shlex.quote(str(path))} {place}"
        raise StoreError(f"PostgreSQL is backed up by its own tool: {command}; pg_restore reads it")
    store.check_output(path)
    source = sqlite3.connect(str(store.url.database), timeout=BUSY)
    with contextlib.closing(source), replacing_bytes(path) as part:
        os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))
        with contextlib.closing(sqlite3.connect(part)) as target:
            source.backup(target)
            # a copy is one file: no log beside it
            target.execute("PRAGMA journal_mode=DELETE")
            found = target.execute("PRAGMA integrity_check").fetchone()[0]
        if found != "ok":
            raise StoreError(f"{path}: the copy is damaged ({found}); check the disk")
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
    return path
