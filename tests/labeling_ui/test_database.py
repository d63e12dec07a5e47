"""Opening, upgrading and refusing label databases."""

import shutil
import sqlite3
import threading
import time

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from rounds_for_tests import make_candidates, rank_everything

from alignment.errors import StoreError
from labeling_ui import database
from labeling_ui.database import Turns
from labeling_ui.schema import metadata
from labeling_ui.store import LabelStore

LEGACY = """
CREATE TABLE setting ("key" VARCHAR NOT NULL PRIMARY KEY, value VARCHAR NOT NULL);
CREATE TABLE round (id VARCHAR NOT NULL PRIMARY KEY, name VARCHAR NOT NULL,
  panel VARCHAR NOT NULL, rankings_per_prompt INTEGER NOT NULL, created_ms BIGINT NOT NULL,
  frozen_ms BIGINT, frozen_digest VARCHAR);
CREATE TABLE task (id VARCHAR NOT NULL PRIMARY KEY, round_id VARCHAR NOT NULL REFERENCES round(id),
  position INTEGER NOT NULL, prompt_id VARCHAR NOT NULL, messages JSON NOT NULL,
  language VARCHAR NOT NULL, state VARCHAR NOT NULL, wanted INTEGER NOT NULL,
  done INTEGER NOT NULL, leased INTEGER NOT NULL, skips INTEGER NOT NULL,
  UNIQUE (round_id, prompt_id), CHECK (state in ('open', 'complete', 'left_out')),
  CHECK (done >= 0 and leased >= 0 and done + leased <= wanted));
CREATE INDEX task_by_state ON task (round_id, state, position);
CREATE TABLE response (task_id VARCHAR NOT NULL REFERENCES task(id), position INTEGER NOT NULL,
  response_id VARCHAR NOT NULL, text TEXT NOT NULL, cut_off BOOLEAN NOT NULL,
  PRIMARY KEY (task_id, position), UNIQUE (task_id, response_id));
CREATE TABLE labeler (id INTEGER NOT NULL PRIMARY KEY, name VARCHAR NOT NULL UNIQUE,
  pseudonym VARCHAR NOT NULL UNIQUE, created_ms BIGINT NOT NULL);
CREATE TABLE assignment (id VARCHAR NOT NULL PRIMARY KEY,
  task_id VARCHAR NOT NULL REFERENCES task(id), labeler_id INTEGER NOT NULL REFERENCES labeler(id),
  state VARCHAR NOT NULL, display_order JSON NOT NULL, leased_ms BIGINT NOT NULL,
  expires_ms BIGINT NOT NULL, skip_reason VARCHAR, UNIQUE (task_id, labeler_id),
  CHECK (state in ('leased', 'expired', 'done', 'surplus', 'skipped')));
CREATE INDEX assignment_by_labeler ON assignment (labeler_id, state);
CREATE INDEX assignment_by_expiry ON assignment (state, expires_ms);
CREATE TABLE annotation (id VARCHAR NOT NULL PRIMARY KEY,
  assignment_id VARCHAR NOT NULL REFERENCES assignment(id), revision INTEGER NOT NULL,
  tiers JSON NOT NULL, active_seconds FLOAT NOT NULL, created_ms BIGINT NOT NULL,
  UNIQUE (assignment_id, revision));
CREATE TRIGGER annotation_no_update BEFORE update ON annotation
  BEGIN SELECT RAISE(ABORT, 'annotations are append-only'); END;
CREATE TRIGGER annotation_no_delete BEFORE delete ON annotation
  BEGIN SELECT RAISE(ABORT, 'annotations are append-only'); END;
INSERT INTO setting VALUES ('schema_version', '1'), ('session_secret', 'aabb');
INSERT INTO round VALUES ('r1', 'old', '', 2, 1, NULL, NULL);
INSERT INTO task VALUES
  ('r1-0', 'r1', 0, 'p0', '[["user", "Q"]]', 'en', 'open', 2, 1, 0, 0),
  ('r1-1', 'r1', 1, 'p1', '[["user", "Q"]]', 'en', 'left_out', 2, 0, 0, 2);
INSERT INTO response VALUES ('r1-0', 0, 'a', 'one', 0), ('r1-0', 1, 'b', 'two', 0),
  ('r1-1', 0, 'a', 'one', 0), ('r1-1', 1, 'b', 'two', 0);
INSERT INTO labeler VALUES (1, 'Ada', 'person-1', 1);
INSERT INTO assignment VALUES ('x', 'r1-0', 1, 'done', '[[1], [0]]', 1, 2, NULL);
INSERT INTO annotation VALUES ('sub-00001', 'x', 1, '[0, 1]', 3.5, 7);
"""


def make_legacy(path, script=LEGACY):
    connection = sqlite3.connect(path)
    connection.executescript(script)
    connection.close()


def test_labels_of_the_first_release_are_carried_over(tmp_path):
    path = tmp_path / "old.sqlite"
    make_legacy(path)
    with LabelStore.open(path) as store:
        (status,) = store.rounds()
        assert (status.tasks, status.tasks_left_out) == (2, 1)
        assert (status.rankings_wanted, status.rankings_done, status.labelers) == (2, 1, 1)
        (ranking,) = store.rankings("r1")
        assert (ranking.annotation_id, ranking.labeler) == ("sub-00001", "person-1")
        assert ranking.tiers == (1, 0)  # shown in the order b, a
        assert store.session_secret() == bytes.fromhex("aabb")
        rank_everything(store, "r1", ["Ada", "Bob"])  # Ada has ranked it: one more is wanted
        assert store.progress("r1").complete
        assert {r.labeler for r in store.rankings("r1")} == {"person-1", "person-2"}


def test_the_head_in_the_code_is_the_newest_revision():
    config = Config()
    config.set_main_option("script_location", "labeling_ui/migrations")
    assert ScriptDirectory.from_config(config).get_heads() == [database.HEAD]


@pytest.mark.parametrize("kind", ["new sqlite", "upgraded sqlite", "postgresql"])
def test_migrations_end_at_the_tables_of_the_code(kind, tmp_path, request):
    place = tmp_path / "labels.sqlite"
    if kind == "upgraded sqlite":
        make_legacy(place)
    elif kind == "postgresql":
        place = request.getfixturevalue("new_postgresql")(empty=True)
    engine = database.open_database(place)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, metadata) == []
    engine.dispose()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE setting SET value = '99' WHERE key = 'schema_version'", "schema version '99'"),
        (
            "CREATE TABLE alembic_version (version_num VARCHAR);"
            "INSERT INTO alembic_version VALUES ('7777')",
            "schema version '7777'",
        ),
    ],
)
def test_unknown_schema_version_is_refused_untouched(tmp_path, change, message):
    path = tmp_path / "future.sqlite"
    make_legacy(path, LEGACY + change)
    before = sqlite3.connect(path).execute("SELECT sql FROM sqlite_master").fetchall()
    with pytest.raises(StoreError, match=message):
        LabelStore.open(path)
    assert sqlite3.connect(path).execute("SELECT sql FROM sqlite_master").fetchall() == before


def test_a_failed_upgrade_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "old.sqlite"
    make_legacy(path, LEGACY.replace("VALUES ('schema", "VALUES ('x', 'y'), ('schema"))
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE participation (mine INTEGER)")  # in the upgrade's way
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="participation"):
        LabelStore.open(path)
    columns = sqlite3.connect(path).execute("PRAGMA table_info(task)").fetchall()
    assert "kind" not in {column[1] for column in columns}


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("mysql://root@localhost/labels", "kind 'mysql' is not supported"),
        ("postgresql://nobody@127.0.0.1:9/labels", "PostgreSQL server must be running"),
        ("://", "is no URL"),
    ],
)
def test_addresses_that_cannot_be_used(place, message):
    with pytest.raises(StoreError, match=message):
        LabelStore.open(place)


def test_passwords_of_addresses_are_not_shown():
    with pytest.raises(StoreError) as error:
        LabelStore.open("postgresql://lead:hunter2@127.0.0.1:9/labels")
    assert "hunter2" not in str(error.value)


def test_a_read_only_database_is_told(tmp_path, monkeypatch):
    path = tmp_path / "labels.sqlite"
    with LabelStore.open(path) as store:
        store.publish_round(make_candidates(), rankings_per_prompt=1)
    copy = tmp_path / "copy.sqlite"
    shutil.copy(path, copy)
    with LabelStore.open(copy) as store:
        round_id = store.rounds()[0].round_id
        with store._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA query_only = 1")  # as for a root that may anything
        with pytest.raises(StoreError, match="readonly database"):
            store.claim(round_id, "Ada")


def test_writers_of_a_process_take_turns_in_the_order_they_came():
    turns, order, threads = Turns(), [], []

    def write(number):
        with turns:
            order.append(number)

    with turns:
        for number in range(8):
            thread = threading.Thread(target=write, args=(number,))
            thread.start()
            threads.append(thread)
            while len(turns._waiting) < number + 2:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == list(range(8))


def test_a_writer_that_waits_too_long_is_told_and_holds_up_nobody(monkeypatch):
    monkeypatch.setattr("labeling_ui.database.BUSY_TIMEOUT_MS", 50)
    turns = Turns()
    with turns, pytest.raises(StoreError, match=r"took no other ranking for 0 s.*send it again"):
        turns.__enter__()
    with turns:  # and the next one is not kept waiting by the one that left
        pass
