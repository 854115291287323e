"""The store: what is kept on disk, one transaction for many, older versions, copies."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert, inspect, select, update

from apps.annotate.accounts import Accounts
from apps.annotate.errors import Refused, StoreError
from apps.annotate.service import Service
from apps.annotate.store import Store, backup, open_store, parse_url, put_setting, shown
from apps.annotate.tables import VERSION, events, pairs, schema_version, settings, tables, users
from tests.apps.annotate.conftest import CHEAP, PASSWORD, Browser, MakeProject, Project, code_of

HERE = Path(__file__).parent


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = open_store(f"sqlite:///{tmp_path / 'votes.db'}", create=True)
    yield found
    found.close()


def test_a_commit_waits_for_the_disk(store: Store) -> None:
    with store.read() as connection:
        asked = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")
        ]
        # 2 is FULL
        assert asked == ["wal", 2]
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 15_000
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_an_invitation_is_revoked_in_postgresql(database: str) -> None:
    store = open_store(database, create=True)
    accounts = Accounts(store, lambda: 1_800_000_000.0)
    made = [accounts.invite(uses=k) for k in (1, 2)]
    assert {(one.id, one.uses_left) for one in accounts.invitations()} == {(made[0].id, 1), (made[1].id, 2)}
    accounts.revoke(made[0].id)
    assert [one.id for one in accounts.invitations()] == [made[1].id]
    with pytest.raises(Refused, match="no invitation"):
        accounts.revoke(made[0].id)
    store.close()


def test_postgresql_waits_for_the_disk_too(database: str) -> None:
    store = open_store(database, create=True)
    with store.read() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
    store.close()


def together(store: Store, works: list[Callable[[Connection], Any]]) -> list[Any]:
    """Jobs that all wait while another holds the turn, and so share a transaction: results or errors."""
    found: list[Any] = [None] * len(works)

    def one(k: int) -> None:
        try:
            found[k] = store.write(works[k])
        except Exception as error:
            found[k] = error

    threads = [threading.Thread(target=one, args=(k,)) for k in range(len(works))]
    with store._turn:
        for thread in threads:
            thread.start()
        while len(store._queue) < len(works):
            pass
    for thread in threads:
        thread.join()
    return found


def transaction(connection: Connection) -> int:
    """Tells transactions apart."""
    return id(connection.get_transaction())


def test_writers_that_wait_share_one_commit(store: Store) -> None:
    def put(name: str) -> Callable[[Connection], int]:
        def work(connection: Connection) -> int:
            put_setting(connection, name, 1)
            return transaction(connection)

        return work

    found = together(store, [put(f"s{k}") for k in range(8)])
    assert len(set(found)) == 1
    assert [store.setting(f"s{k}") for k in range(8)] == [1] * 8


def test_one_that_is_refused_is_taken_back_alone(store: Store) -> None:
    def put(name: str, error: Exception | None = None) -> Callable[[Connection], str]:
        def work(connection: Connection) -> str:
            put_setting(connection, name, 1)
            if error is not None:
                raise error
            return name

        return work

    wrong = ValueError("no")
    assert together(store, [put("a"), put("b", wrong), put("c")]) == ["a", wrong, "c"]
    assert [store.setting(name) for name in "abc"] == [1, None, 1]


def test_a_transaction_that_the_database_took_back_is_not_believed(store: Store) -> None:
    """As SQLite does on a full disk: the jobs before it in the batch are done again, not lost."""

    def good(connection: Connection) -> str:
        put_setting(connection, "good", 1)
        return "good"

    def stumbles(connection: Connection) -> None:
        put_setting(connection, "bad", 1)
        connection.connection.driver_connection.execute("ROLLBACK")  # type: ignore[union-attr]
        connection.execute(insert(users).values(name=None))

    def after(connection: Connection) -> str:
        put_setting(connection, "after", 1)
        return "after"

    found = together(store, [good, stumbles, after])
    assert (found[0], found[2]) == ("good", "after") and isinstance(found[1], Exception)
    assert [store.setting(name) for name in ("good", "bad", "after")] == [1, None, 1]


def test_more_writers_than_one_batch(store: Store) -> None:
    def add(connection: Connection) -> int:
        found = connection.scalar(select(settings.c.value).where(settings.c.name == "n"))
        put_setting(connection, "n", int(found or 0) + 1)
        return int(found or 0)

    found = together(store, [add] * 150)
    assert sorted(found) == list(range(150)) and store.setting("n") == 150


def test_two_processes_take_turns(store: Store) -> None:
    """Another connection's transaction is waited for, and seen."""
    with contextlib.closing(sqlite3.connect(str(store.url.database), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO settings VALUES ('n', '41')")
        seen: list[Any] = []

        def add(connection: Connection) -> None:
            found = connection.scalar(select(settings.c.value).where(settings.c.name == "n"))
            put_setting(connection, "n", int(found or 0) + 1)

        waiting = threading.Thread(target=lambda: seen.append(store.write(add)))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        other.execute("COMMIT")
        waiting.join()
    assert store.setting("n") == 42


# --- versions ---


def old_store(path: Path) -> None:
    """A store as version 1 left it, with a pair, two labelers and two votes in it."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript((HERE / "version1.sql").read_text())


def test_an_old_store_is_brought_up_to_date_with_its_votes(tmp_path: Path) -> None:
    path = tmp_path / "votes.db"
    old_store(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        before = connection.execute("SELECT * FROM events ORDER BY id").fetchall()
        columns = [row[1] for row in connection.execute("PRAGMA table_info(events)")]
    store = open_store(f"sqlite:///{path}")
    with store.read() as connection:
        assert connection.scalar(select(schema_version.c.version)) == VERSION
        after = connection.execute(select(*(events.c[name] for name in columns)).order_by(events.c.id)).all()
        assert [tuple(row) for row in after] == before and len(before) == 2
        assert connection.scalars(select(events.c.marks)).all() == [None, None]
    # the log is still append-only, and the store works
    with pytest.raises(Exception, match="append-only"):
        store.write(lambda connection: connection.execute(update(events).values(reason="x")).rowcount)
    service = Service(store, cost=CHEAP)
    assert service.overview()["votes"] == 2
    assert service.accounts.sign_in("ann", PASSWORD, "here").session.user.name == "ann"
    store.close()
    # and what was before lies beside it
    with contextlib.closing(sqlite3.connect(tmp_path / "votes.db.v1")) as connection:
        assert connection.execute("SELECT * FROM events ORDER BY id").fetchall() == before
        assert connection.execute("SELECT version FROM schema_version").fetchone() == (1,)


def test_a_migrated_store_is_a_new_store(tmp_path: Path, store: Store) -> None:
    old_store(tmp_path / "old.db")
    old = open_store(f"sqlite:///{tmp_path / 'old.db'}")

    def shape(found: Store) -> dict[str, Any]:
        inspector = inspect(found.engine)
        return {
            name: (
                {(c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(name)},
                {(i["name"], tuple(i["column_names"])) for i in inspector.get_indexes(name)},
                inspector.get_pk_constraint(name)["constrained_columns"],
            )
            for name in inspector.get_table_names()
        }

    assert shape(old) == shape(store)
    old.close()


def test_an_old_store_of_postgresql_is_brought_up_to_date(database: str) -> None:
    new = open_store(database, create=True)

    def back(connection: Connection) -> None:
        connection.exec_driver_sql("ALTER TABLE events DROP COLUMN marks")
        connection.execute(update(schema_version).values(version=1))

    new.write(back)
    new.close()
    store = open_store(database)
    assert "marks" in {column["name"] for column in inspect(store.engine).get_columns("events")}
    with store.read() as connection:
        assert connection.scalar(select(schema_version.c.version)) == VERSION
    store.close()


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from apps.annotate import migrations

    old_store(tmp_path / "votes.db")
    steps = {1: (*migrations.STEPS[1], "ALTER TABLE no_such_table ADD COLUMN x TEXT")}
    monkeypatch.setattr(migrations, "STEPS", steps)
    with pytest.raises(StoreError, match="no such table"):
        open_store(f"sqlite:///{tmp_path / 'votes.db'}")
    with contextlib.closing(sqlite3.connect(tmp_path / "votes.db")) as connection:
        assert connection.execute("SELECT version FROM schema_version").fetchone() == (1,)
        assert "marks" not in [row[1] for row in connection.execute("PRAGMA table_info(events)")]


def test_every_version_has_a_step() -> None:
    from apps.annotate.migrations import STEPS

    assert sorted(STEPS) == list(range(1, VERSION))


def test_a_later_version_is_left_alone(tmp_path: Path, store: Store) -> None:
    later = update(schema_version).values(version=VERSION + 1)
    store.write(lambda connection: connection.execute(later).rowcount)
    with pytest.raises(StoreError, match="newer program"):
        open_store(f"sqlite:///{tmp_path / 'votes.db'}")


# --- opening, copying ---


def test_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store there"):
        open_store(f"sqlite:///{tmp_path / 'none.db'}")
    assert not (tmp_path / "none.db").exists()
    for url in ("votes.db", "mysql://x/y", "sqlite://", "sqlite:///:memory:"):
        with pytest.raises(StoreError, match="sqlite:///FILE"):
            parse_url(url)
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE users (x)")
    with pytest.raises(StoreError, match="another program"):
        open_store(f"sqlite:///{tmp_path / 'other.db'}", create=True)
    (tmp_path / "text.db").write_text("no database" * 100)
    with pytest.raises(StoreError, match="not a database"):
        open_store(f"sqlite:///{tmp_path / 'text.db'}", create=True)


def test_passwords_of_databases_are_not_shown() -> None:
    url = parse_url("postgresql://me:hidden@db/votes")
    assert "hidden" not in shown(url) and url.drivername == "postgresql+psycopg"


def test_a_copy_while_others_vote(make_project: MakeProject, tmp_path: Path) -> None:
    project = make_project(30)
    ended = threading.Event()

    def vote() -> None:
        for _ in range(30):
            project.vote("ann")
        ended.set()

    project.user("ann")
    voting = threading.Thread(target=vote)
    voting.start()
    copies = []
    while not ended.is_set() or not copies:
        copies.append(backup(project.service.store, tmp_path / f"copy{len(copies)}.db"))
    voting.join()
    copies.append(backup(project.service.store, tmp_path / "last.db"))
    counts = []
    for path in copies:
        assert path.stat().st_mode & 0o077 == 0
        copy = open_store(f"sqlite:///{path}")
        with copy.read() as connection:
            log = connection.execute(select(events.c.pair_n).where(events.c.kind == "vote")).all()
            done = connection.scalars(select(pairs.c.n).where(pairs.c.votes == 1)).all()
        # a state that was: every vote in it is counted
        assert sorted(row.pair_n for row in log) == sorted(done)
        counts.append(len(log))
        copy.close()
    assert counts == sorted(counts) and counts[-1] == 30
    assert not list(tmp_path.glob(".*.part"))


def test_postgresql_is_told_its_own_tool(database: str, tmp_path: Path) -> None:
    """The command that is told works as it stands, and holds no password."""
    store, copy = open_store(database, create=True), tmp_path / "a copy"
    store.url = store.url.set(password="secret")
    with pytest.raises(StoreError, match="pg_dump --format=custom") as caught:
        backup(store, copy)
    store.close()
    command = str(caught.value).partition("its own tool: ")[2].partition("; pg_restore")[0]
    assert "secret" not in command and "***" not in command
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(command, shell=True, check=True, env={**os.environ, "PATH": path})
    assert copy.read_bytes().startswith(b"PGDMP")


def test_the_same_service_on_postgresql(project: Project, database: str) -> None:
    """Votes, undo, idempotence and the append-only log, as on SQLite."""
    from apps.annotate.imports import import_pairs
    from apps.annotate.results import Answers, Task
    from data.convert import Source
    from data.jsonl import write_records
    from tests.apps.annotate.conftest import pair

    write_records(project.folder / "more.jsonl", [pair(f"{k}") for k in range(4)])
    store = open_store(database, create=True)
    import_pairs(store, Source(project.folder / "more.jsonl", None, images=project.folder / "images"))
    service = Service(store, images=project.folder / "images", cost=CHEAP)
    service.set_rules({"qualification": 0, "pass_mark": 0, "gold_every": 0})
    ann = service.accounts.add("ann", PASSWORD)
    task = service.next_task(ann)
    assert isinstance(task, Task)
    kept = service.vote(ann, task.pair, Answers("tie", "A", {"B": [(0, 3)]}), "token-0001", 2.0)
    assert (
        service.vote(ann, task.pair, Answers("tie", "A", {"B": [(0, 3)]}), "token-0001").event == kept.event
    )
    undone = service.undo(ann, "token-0002")
    assert undone.pair == task.pair and undone.before == Answers("tie", "A", {"B": [(0, 3)]})
    service.vote(ann, task.pair, Answers("B"), "token-0003")
    assert service.progress(ann).votes == 1 and service.overview()["votes"] == 1
    assert service.disputed() == (0, []) and service.agreement(50)["pairs"] == 0
    assert service.picture(ann, task.pair) is not None
    with pytest.raises(Exception, match="append-only"):
        store.write(lambda connection: connection.execute(update(events).values(reason="x")).rowcount)
    # what PostgreSQL cannot keep is refused for good: a page would send the request for ever
    browser = Browser(Project(project.folder, service, project.clock))
    browser.login("ann")
    body = {"pair": browser.post("next").json()["pair"], "token": "token-0004", "reason": "other"}
    assert code_of(browser.post("skip", body | {"note": "a\0b"})) == (422, "invalid")
    assert browser.post("skip", body | {"note": "ab"}).status_code == 200
    assert set(inspect(store.engine).get_table_names()) == set(tables.tables)
    store.close()
