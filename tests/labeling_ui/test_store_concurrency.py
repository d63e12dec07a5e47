"""Several threads and processes at one label database: nothing lost, nothing twice."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from rounds_for_tests import make_candidates
from sqlalchemy import select, text

from alignment.errors import LabelError, StoreError
from labeling_ui.schema import task
from labeling_ui.store import LabelStore

WORKER = """
import sys
from pathlib import Path
from labeling_ui.store import LabelStore

path, round_id, labeler = sys.argv[1:]
with LabelStore.open(Path(path)) as store:
    while (card := store.claim(round_id, labeler)) is not None:
        for _ in range(2):  # every ranking is sent twice
            receipt = store.submit(
                card.assignment_id,
                labeler,
                submission_id=f"{labeler}-{card.task_id}",
                tiers=range(len(card.responses)),
            )
        print(receipt.submission_id, receipt.counted, flush=True)
"""


def worker(path, round_id, labeler):
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(path), round_id, labeler],
        stdout=subprocess.PIPE,
        text=True,
    )


def rows(path, query):
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def assert_counters_hold(path):
    """`done` and `leased` of every task equal a recount of its assignments."""
    recount = """
        SELECT task.id FROM task WHERE
        done != (SELECT count(*) FROM assignment a WHERE a.task_id = task.id AND a.state = 'done')
        OR leased != (SELECT count(*) FROM assignment a
                      WHERE a.task_id = task.id AND a.state = 'leased')
    """
    assert rows(path, recount) == []


def test_threads_claim_and_submit_everything_once(store, store_path):
    """Short leases run out under way, so late and surplus work happens too."""
    round_id = store.publish_round(make_candidates(20), rankings_per_prompt=3).round_id
    over_assigned = []

    def label(number):
        name = f"labeler {number}"
        counted = []
        while (card := store.claim(round_id, name, lease_s=20)) is not None:
            if number % 4 == 0:
                store._clock.now += 21  # dawdles: everyone's lease runs out
            for _ in range(2):
                receipt = store.submit(
                    card.assignment_id,
                    name,
                    submission_id=f"{number:02d}:{card.task_id}",
                    tiers=[0, 0, 1],
                )
            counted.append((receipt.submission_id, receipt.counted))
        return counted

    def watch(stop):
        while not stop.wait(0.01):
            over_assigned.extend(
                rows(store_path, "SELECT id FROM task WHERE done + leased > wanted")
            )

    stop = threading.Event()
    watcher = threading.Thread(target=watch, args=(stop,))
    watcher.start()
    with ThreadPoolExecutor(8) as pool:
        receipts = [receipt for result in pool.map(label, range(8)) for receipt in result]
    stop.set()
    watcher.join()

    assert over_assigned == []
    assert store.progress(round_id).complete
    stored = Counter(i for (i,) in rows(store_path, "SELECT id FROM annotation"))
    assert stored == Counter(submission_id for submission_id, _ in receipts)
    assert {r.annotation_id for r in store.rankings(round_id)} == {
        submission_id for submission_id, counted in receipts if counted
    }
    per_prompt = Counter(r.prompt_id for r in store.rankings(round_id))
    assert set(per_prompt.values()) == {3}
    assert_counters_hold(store_path)


RECOUNT = """
    SELECT task.id FROM task WHERE done + leased > wanted
    OR done != (SELECT count(*) FROM assignment a WHERE a.task_id = task.id AND a.state = 'done')
    OR leased != (SELECT count(*) FROM assignment a
                  WHERE a.task_id = task.id AND a.state = 'leased')
"""


@pytest.mark.engines
def test_a_claim_that_the_database_ended_for_a_deadlock_is_made_again(new_postgresql, clock):
    """Bob gives an overdue card back and waits for the one task left to him, whose holder then asks
    for the overdue one: PostgreSQL ends Bob's transaction, the first to have waited a second.
    """
    with LabelStore.open(new_postgresql(), clock=clock) as store:
        round_id = store.publish_round(make_candidates(2), rankings_per_prompt=2).round_id
        first = store.claim(round_id, "bob")
        store.submit(first.assignment_id, "bob", submission_id="bobs-first", tiers=range(3))
        assert store.claim(round_id, "eve", lease_s=20).task_id == first.task_id
        clock.now += 21
        left = select(task.c.id).where(task.c.round_id == round_id, task.c.id != first.task_id)
        with ThreadPoolExecutor() as pool, store.write() as holder:
            holder.execute(left.with_for_update())
            claimed = pool.submit(store.claim, round_id, "bob")
            time.sleep(0.3)  # until he waits; a second later PostgreSQL looks for deadlocks
            holder.execute(select(task.c.id).where(task.c.id == first.task_id).with_for_update())
            holder.rollback()
            card = claimed.result(timeout=60)
            assert card.task_id != first.task_id
        assert _deadlocks(store) == 1, "there was none, so nothing was shown"


def _deadlocks(store):
    """How many PostgreSQL has ended in this database; its counters lag behind a little."""
    query = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    counted = 0
    for _ in range(50):
        with store.write() as connection:
            counted = connection.scalar(query)
        if counted:
            break
        time.sleep(0.1)
    return counted


@pytest.mark.engines
def test_600_claims_of_24_labelers_with_lost_leases(store):
    """On either database; every ranking is sent twice, some after their lease ran out."""
    round_id = store.publish_round(make_candidates(200), rankings_per_prompt=3).round_id
    wrong = []

    def label(number):
        name, receipts = f"labeler {number}", []
        while (card := store.claim(round_id, name, lease_s=20)) is not None:
            if number % 8 == 0 and len(receipts) % 5 == 4:
                store._clock.now += 21  # everyone's lease runs out
            for _ in range(2):
                receipt = store.submit(
                    card.assignment_id,
                    name,
                    submission_id=f"{number:02d}:{card.task_id}",
                    tiers=[0, 0, 1],
                )
            receipts.append((receipt.submission_id, receipt.counted))
        return receipts

    def watch(stop):
        while not stop.wait(0.05):
            with store.read() as connection:
                wrong.extend(connection.exec_driver_sql(RECOUNT).all())

    stop = threading.Event()
    watcher = threading.Thread(target=watch, args=(stop,))
    watcher.start()
    with ThreadPoolExecutor(24) as pool:
        receipts = [receipt for result in pool.map(label, range(24)) for receipt in result]
    stop.set()
    watcher.join()

    assert wrong == []
    assert store.progress(round_id).rankings_done == 600
    assert len(receipts) == len(set(receipts)) >= 600
    with store.read() as connection:
        stored = connection.exec_driver_sql("SELECT id FROM annotation").scalars().all()
    assert sorted(stored) == sorted(submission_id for submission_id, _ in receipts)
    counted = {r.annotation_id for r in store.rankings(round_id)}
    assert counted == {submission_id for submission_id, done in receipts if done}
    assert len(counted) == 600


def test_one_submission_sent_by_many_threads_at_once(store):
    round_id = store.publish_round(make_candidates(1), rankings_per_prompt=1).round_id
    card = store.claim(round_id, "Ada")

    def send(number):
        try:
            return store.submit(
                card.assignment_id,
                "Ada",
                submission_id="same-submission",
                tiers=[0, 1, 2] if number % 2 else [2, 1, 0],
            )
        except LabelError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(16)))
    refused = [a for a in answers if isinstance(a, str)]
    assert len(refused) == 8  # exactly the threads that sent the other ranking
    assert len({a for a in answers if not isinstance(a, str)}) == 1
    assert len(store.rankings(round_id)) == 1


def test_processes_open_one_new_database_at_once(tmp_path):
    path = tmp_path / "new.sqlite"
    code = (
        "import sys; from pathlib import Path; from labeling_ui.store import LabelStore; "
        "LabelStore.open(Path(sys.argv[1]))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(4)]
    assert [p.wait(timeout=60) for p in processes] == [0] * 4


@pytest.mark.engines
def test_processes_claim_and_submit_everything_once(store, store_path):
    round_id = store.publish_round(make_candidates(15), rankings_per_prompt=2).round_id
    processes = [worker(store_path, round_id, f"labeler-{n}") for n in range(3)]
    acknowledged = []
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        acknowledged += output.splitlines()
    assert len(acknowledged) == 30
    assert all(line.endswith(" True") for line in acknowledged)
    assert len(store.rankings(round_id)) == 30
    assert_counters_hold(store_path)


def test_killing_a_submitting_process_loses_no_acknowledged_ranking(store, store_path):
    round_id = store.publish_round(make_candidates(400), rankings_per_prompt=1).round_id
    acknowledged = []
    for n in range(2):
        process = worker(store_path, round_id, f"labeler-{n}")
        acknowledged += [process.stdout.readline().split()[0] for _ in range(20)]
        os.kill(process.pid, signal.SIGKILL)
        # What was printed before the kill took effect was acknowledged as well.
        acknowledged += [line.split()[0] for line in process.communicate()[0].splitlines()]
    stored = {r.annotation_id for r in store.rankings(round_id)}
    assert len(acknowledged) >= 40
    assert set(acknowledged) <= stored
    assert len(stored) <= len(acknowledged) + 2  # at most one a process was not yet printed
    assert_counters_hold(store_path)
    assert rows(store_path, "PRAGMA integrity_check") == [("ok",)]


def test_a_locked_database_is_told(store, store_path, monkeypatch):
    monkeypatch.setattr("labeling_ui.database.BUSY_TIMEOUT_MS", 50)
    blocker = sqlite3.connect(store_path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="database is locked"):
        LabelStore.open(store_path)
    blocker.close()
