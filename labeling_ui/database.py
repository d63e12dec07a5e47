"""How the label database is opened: embedded SQLite at a path, or PostgreSQL by a URL.

SQLite runs in WAL mode with `synchronous=FULL`: a ranking that was acknowledged survives the
death of the process and of the machine. One writer at a time (`BEGIN IMMEDIATE`), any number of
readers. PostgreSQL takes row locks, always in the order round, participation, task, assignment,
round_count. Only a claim waits for a task while it may hold others, so the claims of a round take
turns; a submission takes more tasks than its own only where they are free. An older database is
brought up to date when it is opened, in one transaction; one of an unknown revision is refused
untouched.
"""

import secrets
import sqlite3
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    Table,
    create_engine,
    event,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError

from alignment.errors import StoreError
from labeling_ui.schema import setting

HEAD = "0004"
"""The newest revision in `migrations/versions`."""
EARLIER = ("0001", "0002")
"""Revisions that are brought up to it."""
LEGACY_VERSION = "1"
"""`setting.schema_version` of databases from before Alembic; they are revision 0001."""
BUSY_TIMEOUT_MS = 30_000
READ_ONLY = "alignflow_read_only"
"""Execution option of transactions that only read, so that they take no write lock."""
_LOCK_KEY = 0x616C69676E
"""PostgreSQL's advisory lock around what must not happen twice at once."""


def open_database(place: Path | str) -> Engine:
    """The label database at a path or a `postgresql://` URL, created or upgraded where needed.

    Raises:
        StoreError: not a label database, an unknown revision, or not reachable and writable.
    """
    url = _url(place)
    try:
        if url.get_backend_name() == "sqlite":
            Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
            engine = create_engine(
                url, pool_size=8, max_overflow=56, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000}
            )
            event.listen(engine, "connect", _set_pragmas)
            event.listen(engine, "begin", _begin)
        else:
            engine = create_engine(url, pool_size=8, max_overflow=56, pool_pre_ping=True)
        with engine.begin() as connection:
            exclusive(connection)
            _bring_up_to_date(connection, shown(url))
    except (DBAPIError, OSError) as error:
        raise StoreError(_explain(url, error)) from error
    return engine


def _url(place: Path | str) -> URL:
    if isinstance(place, Path) or "://" not in place:
        return URL.create("sqlite", database=str(place))
    try:
        url = make_url(place)
    except ArgumentError as error:
        raise StoreError(f"label database address {place!r} is no URL: {error}") from None
    if url.drivername in ("postgresql", "postgres", "postgresql+pg8000"):
        return url.set(drivername="postgresql+pg8000")
    if url.drivername == "sqlite":
        return url
    raise StoreError(
        f"label database address of kind {url.drivername!r} is not supported: use a file's path or "
        "postgresql://USER:PASSWORD@HOST/DATABASE"
    )


def shown(url: URL) -> str:
    """The database as it is named in messages: a path, or a URL without its password."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    return url.render_as_string(hide_password=True)


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


class Turns:
    """One writer of this process after the other, in the order in which they came.

    SQLite lets those that wait ask again after ever longer pauses, and whoever asks at the right
    moment wins: among 24 writers some wait for seconds while others pass at once.
    """

    def __init__(self) -> None:
        self._waiting: deque[threading.Lock] = deque()
        self._guard = threading.Lock()

    def __enter__(self) -> None:
        mine = threading.Lock()
        with self._guard:
            first = not self._waiting
            self._waiting.append(mine)
            mine.acquire()
        if first or mine.acquire(timeout=BUSY_TIMEOUT_MS / 1000):
            return
        with self._guard:
            if self._waiting[0] is mine:  # the turn came at the last moment
                return
            self._waiting.remove(mine)
        raise StoreError(
            f"the label database took no other ranking for {BUSY_TIMEOUT_MS / 1000:.0f} s. Its "
            "disk is stuck or far too slow, or another program holds the database; send it again"
        )

    def __exit__(self, *_: object) -> None:
        with self._guard:
            self._waiting.popleft()
            if self._waiting:
                self._waiting[0].release()


def exclusive(connection: Connection) -> None:
    """Holds every other transaction here until this one ends; SQLite does so by itself."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})


def insert_if_absent(connection: Connection, table: Table, values: dict[str, Any]) -> bool:
    """Inserts a row unless its key exists; True if it was inserted."""
    insert: Any = (
        postgresql.insert(table)
        if connection.dialect.name == "postgresql"
        else sqlite.insert(table)
    )
    return connection.execute(insert.values(**values).on_conflict_do_nothing()).rowcount == 1


def _bring_up_to_date(connection: Connection, place: str) -> None:
    existing = set(inspect(connection).get_table_names())
    revision = _revision(connection, existing, place)
    if revision == HEAD:
        return
    _upgrade(connection, revision)
    if revision is None:
        key = {"key": "session_secret", "value": secrets.token_hex(32)}
        connection.execute(setting.insert().values(**key))


def _revision(connection: Connection, existing: set[str], place: str) -> str | None:
    """None for an empty database; refuses what this code does not know."""
    if not existing:
        return None
    if "setting" not in existing or "annotation" not in existing:
        raise StoreError(
            f"{place} is a database of something else (tables: {', '.join(sorted(existing))}); "
            "name a label database or one that does not exist yet"
        )
    if "alembic_version" in existing:
        found = connection.scalar(text("SELECT version_num FROM alembic_version"))
        known = found in (*EARLIER, HEAD)
    else:
        query = select(setting.c.value).where(setting.c.key == "schema_version")
        found = connection.scalar(query)
        known = found == LEGACY_VERSION
    if not known:
        raise StoreError(
            f"{place} has label schema version {found!r}; this alignflow reads up to {HEAD!r}. "
            "Use the alignflow version that wrote it; nothing was changed"
        )
    return "0001" if found == LEGACY_VERSION else str(found)


def _upgrade(connection: Connection, revision: str | None) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option(
        "script_location", str(Path(__file__).parent / "migrations").replace("%", "%%")
    )
    config.attributes["connection"] = connection
    if revision is not None:
        command.stamp(config, revision)
    command.upgrade(config, "head")


def _explain(url: URL, error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    if url.get_backend_name() == "sqlite":
        needed = "It must be a readable and writable SQLite file on a local disk with free space"
    else:
        needed = "The PostgreSQL server must be running, reachable and writable"
    return f"label database {shown(url)} cannot be used: {cause}. {needed}"


def explain_database_error(engine: Engine, error: Exception) -> StoreError:
    """The error for a statement that the database itself refused: full disk, read-only, locked."""
    return StoreError(_explain(engine.url, error))
