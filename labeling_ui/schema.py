"""The label database: its tables, how it is opened, and which schema version it may have.

SQLite in WAL mode with `synchronous=FULL`: a ranking that was acknowledged survives the death
of the process and of the machine. One writer at a time (`BEGIN IMMEDIATE`), any number of
readers. Times are UTC in milliseconds since 1970. Annotations are append-only, by trigger.
"""

import secrets
import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    inspect,
    select,
    text,
)
from sqlalchemy.exc import DatabaseError

from alignment.errors import StoreError

SCHEMA_VERSION = 1
BUSY_TIMEOUT_MS = 30_000
READ_ONLY = "alignflow_read_only"
"""Execution option of transactions that only read, so that they take no write lock."""

metadata = MetaData()

setting = Table(
    "setting",
    metadata,
    Column("key", String, primary_key=True),
    Column("value", String, nullable=False),
)

round_ = Table(
    "round",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("panel", String, nullable=False),
    Column("rankings_per_prompt", Integer, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("frozen_ms", BigInteger),
    Column("frozen_digest", String),
)

# `done` and `leased` count assignments of the task; the check makes over-assignment impossible.
task = Table(
    "task",
    metadata,
    Column("id", String, primary_key=True),
    Column("round_id", ForeignKey("round.id"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("prompt_id", String, nullable=False),
    Column("messages", JSON, nullable=False),
    Column("language", String, nullable=False),
    Column("state", String, nullable=False),
    Column("wanted", Integer, nullable=False),
    Column("done", Integer, nullable=False, default=0),
    Column("leased", Integer, nullable=False, default=0),
    Column("skips", Integer, nullable=False, default=0),
    UniqueConstraint("round_id", "prompt_id"),
    CheckConstraint("state in ('open', 'complete', 'left_out')"),
    CheckConstraint("done >= 0 and leased >= 0 and done + leased <= wanted"),
    Index("task_by_state", "round_id", "state", "position"),
)

response = Table(
    "response",
    metadata,
    Column("task_id", ForeignKey("task.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("response_id", String, nullable=False),
    Column("text", Text, nullable=False),
    Column("cut_off", Boolean, nullable=False),
    UniqueConstraint("task_id", "response_id"),
)

labeler = Table(
    "labeler",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("pseudonym", String, nullable=False, unique=True),
    Column("created_ms", BigInteger, nullable=False),
)

# `display_order[i]` lists the positions of the identical responses shown in place i.
assignment = Table(
    "assignment",
    metadata,
    Column("id", String, primary_key=True),
    Column("task_id", ForeignKey("task.id"), nullable=False),
    Column("labeler_id", ForeignKey("labeler.id"), nullable=False),
    Column("state", String, nullable=False),
    Column("display_order", JSON, nullable=False),
    Column("leased_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("skip_reason", String),
    UniqueConstraint("task_id", "labeler_id"),
    CheckConstraint("state in ('leased', 'expired', 'done', 'surplus', 'skipped')"),
    Index("assignment_by_labeler", "labeler_id", "state"),
    Index("assignment_by_expiry", "state", "expires_ms"),
)

annotation = Table(
    "annotation",
    metadata,
    Column("id", String, primary_key=True),
    Column("assignment_id", ForeignKey("assignment.id"), nullable=False),
    Column("revision", Integer, nullable=False, default=1),
    Column("tiers", JSON, nullable=False),
    Column("active_seconds", Float, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    UniqueConstraint("assignment_id", "revision"),
)

_APPEND_ONLY = [
    f"CREATE TRIGGER annotation_no_{verb} BEFORE {verb} ON annotation "
    "BEGIN SELECT RAISE(ABORT, 'annotations are append-only'); END"
    for verb in ("update", "delete")
]


def open_database(path: Path) -> Engine:
    """The database at `path`, created with its folder and tables where absent.

    Raises:
        StoreError: not a label database, an unknown schema version, or not writable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(
            f"sqlite:///{path}", pool_size=8, max_overflow=56, connect_args={"timeout": 30}
        )
        event.listen(engine, "connect", _set_pragmas)
        event.listen(engine, "begin", _begin)
        with engine.begin() as connection:
            _create_or_check(connection, path)
    except (DatabaseError, OSError) as error:
        raise StoreError(_explain(path, error)) from error
    return engine


def _set_pragmas(dbapi_connection: Any, _record: Any) -> None:
    dbapi_connection.isolation_level = None  # BEGIN is ours, see _begin
    cursor = dbapi_connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA synchronous = FULL")
    _use_write_ahead_log(cursor)
    cursor.close()


def _use_write_ahead_log(cursor: Any) -> None:
    # SQLite does not wait on busy_timeout when it changes the journal mode, so two processes
    # that open a new file at once would fail here without the loop.
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            mode = cursor.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            if mode != "wal":
                raise OSError(f"SQLite refuses WAL mode here (mode stays {mode!r})")
            return


def _begin(connection: Connection) -> None:
    read_only = connection.get_execution_options().get(READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _create_or_check(connection: Connection, path: Path) -> None:
    existing = set(inspect(connection).get_table_names())
    if not existing:
        metadata.create_all(connection)
        for statement in _APPEND_ONLY:
            connection.execute(text(statement))
        connection.execute(
            setting.insert(),
            [
                {"key": "schema_version", "value": str(SCHEMA_VERSION)},
                {"key": "session_secret", "value": secrets.token_hex(32)},
            ],
        )
        return
    if "setting" not in existing or "annotation" not in existing:
        raise StoreError(
            f"{path} is a database of something else (tables: {', '.join(sorted(existing))}); "
            "name a label database or a path that does not exist yet"
        )
    version = connection.scalar(select(setting.c.value).where(setting.c.key == "schema_version"))
    if version != str(SCHEMA_VERSION):
        raise StoreError(
            f"{path} has label schema version {version!r}; this alignflow reads version "
            f"{SCHEMA_VERSION}. Use the alignflow version that wrote it; nothing was changed"
        )


def _explain(path: Path, error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    return (
        f"label database {path} cannot be used: {cause}. It must be a readable and writable "
        "SQLite file on a local disk with free space"
    )


def explain_database_error(engine: Engine, error: Exception) -> StoreError:
    """The error for a statement that the database itself refused: full disk, read-only, locked."""
    return StoreError(_explain(Path(str(engine.url.database)), error))
