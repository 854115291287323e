"""The tables of an annotation store, for SQLite and PostgreSQL alike.

The log ``events`` is append-only (triggers refuse anything else): votes, skips, undone votes and
adjudications are told there in order. ``assignments`` says what stands now between a labeler and a pair, and
``pairs.votes`` counts the votes that stand; both could be made again from the log.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from sqlalchemy import (
    DDL,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
)

#: a row that was read, its columns by name: what SQLAlchemy calls its type differs between releases
Found: TypeAlias = Any

#: of the tables below; see ``apps.annotate.migrations`` for the way from older ones
VERSION = 2

tables = MetaData()
schema_version = Table("schema_version", tables, Column("version", Integer, nullable=False))
settings = Table(
    "settings", tables, Column("name", String(64), primary_key=True), Column("value", Text, nullable=False)
)
users = Table(
    "users",
    tables,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("password", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("disabled", SmallInteger, nullable=False, default=0),
    # None: the project's own limit
    Column("vote_limit", Integer),
    # None: not tested yet; "passed" or "failed"
    Column("qualification", String(16)),
    Column("qualification_right", Integer),
    # votes that stand, on work and gold pairs; and skips
    Column("votes", Integer, nullable=False, default=0),
    Column("skips", Integer, nullable=False, default=0),
)
invitations = Table(
    "invitations",
    tables,
    Column("code_hash", String(64), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("uses_left", Integer, nullable=False),
)
sessions = Table(
    "sessions",
    tables,
    Column("token_hash", String(64), primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("csrf", String(64), nullable=False),
    Column("created", Float, nullable=False),
    Column("seen", Float, nullable=False),
)
pairs = Table(
    "pairs",
    tables,
    Column("n", Integer, primary_key=True),
    # what labelers get to know of a pair's name: its id may tell where the responses are from
    Column("key", String(32), nullable=False, unique=True),
    Column("id", Text, nullable=False, unique=True),
    # "work", "gold" or "qualification"
    Column("role", String(16), nullable=False, index=True),
    # a ``data.schema.Preference`` as JSON; only those of gold and qualification pairs hold choices
    Column("record", Text, nullable=False),
    # smaller comes first
    Column("rank", Float, nullable=False),
    Column("wanted", Integer, nullable=False),
    Column("votes", Integer, nullable=False, default=0),
    # 1 while a work pair has fewer votes than wanted and is not decided
    Column("open", SmallInteger, nullable=False),
    # the event of the adjudication that stands
    Column("adjudicated", Integer),
    Index("pairs_open", "open", "rank", "n"),
)
assignments = Table(
    "assignments",
    tables,
    Column("user_id", ForeignKey("users.id"), primary_key=True),
    Column("pair_n", ForeignKey("pairs.n"), primary_key=True),
    # 1: the second response is shown as A
    Column("flipped", SmallInteger, nullable=False),
    # "leased" (until ``expires``), "voted" or "skipped"
    Column("state", String(8), nullable=False),
    Column("served", Float, nullable=False),
    Column("expires", Float, nullable=False),
    # the vote or skip that stands
    Column("event_id", Integer),
    Index("assignments_pair", "pair_n", "state", "expires"),
    Index("assignments_lease", "user_id", "state", "expires"),
    # looked up by labeler and pair for every pair that is passed over
    sqlite_with_rowid=False,
)
events = Table(
    "events",
    tables,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("user_id", ForeignKey("users.id"), nullable=False),
    Column("pair_n", ForeignKey("pairs.n"), nullable=False, index=True),
    # "vote", "skip", "undo" or "adjudicate"
    Column("kind", String(16), nullable=False),
    # chosen by the client; a request sent twice has the same
    Column("token", String(64), nullable=False),
    # index of the better response, None for a tie (and for questions that were not asked)
    Column("hallucination", SmallInteger),
    Column("helpfulness", SmallInteger),
    Column("flipped", SmallInteger),
    Column("seconds_browser", Float),
    Column("seconds_server", Float),
    # why it was skipped, or a note
    Column("reason", Text),
    # of an undo: the event that stands no longer
    Column("of_event", Integer),
    # JSON [[response, start, end], ...] in characters: what the labeler marked as hallucinated
    Column("marks", Text),
    UniqueConstraint("user_id", "token", name="events_token"),
    Index("events_user", "user_id", "id"),
    sqlite_autoincrement=True,
)

for _verb in ("UPDATE", "DELETE"):
    event.listen(
        events,
        "after_create",
        DDL(
            f"CREATE TRIGGER events_no_{_verb.lower()} BEFORE {_verb} ON events "
            "BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END"
        ).execute_if(dialect="sqlite"),
    )
event.listen(
    events,
    "after_create",
    DDL(
        "CREATE OR REPLACE FUNCTION events_kept() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the log is append-only'; END $$; "
        "CREATE TRIGGER events_kept BEFORE UPDATE OR DELETE ON events "
        "FOR EACH ROW EXECUTE FUNCTION events_kept()"
    ).execute_if(dialect="postgresql"),
)
