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
from rounds_for_tests import make_candidates, submission
from sqlalchemy import select, update

from alignment.errors import LabelError, StoreError
from labeling_ui.rounds import find_round
from labeling_ui.schema import assignment, draft, task
from labeling_ui.store import LabelStore
from labeling_ui.task_choice import choose_task

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


@pytest.fixture
def bob_pauses(monkeypatch):
    """Bob's claim stops where it has given overdue cards back and not yet chosen a task."""
    stopped, go_on = threading.Event(), threading.Event()

    def choose(connection, round_id, labeler_id, name, *others):
        if name == "bob":
            stopped.set()
            go_on.wait(20)
        return choose_task(connection, round_id, labeler_id, name, *others)

    monkeypatch.setattr("labeling_ui.assignment.choose_task", choose)
    return stopped, go_on


def rank(store, round_id, labeler):
    card = store.claim(round_id, labeler)
    submission(store, card, labeler, f"{labeler}-{card.task_id}")
    return card.task_id


@pytest.mark.engines
def test_two_claims_that_give_back_what_the_other_wants(new_postgresql, clock, bob_pauses):
    """Both tasks have room and an overdue card. Bob gave back the one he has ranked and Cora the
    one that she has, and then each would wait for the other's.
    """
    stopped, go_on = bob_pauses
    with LabelStore.open(new_postgresql(), clock=clock) as store:
        round_id = store.publish_round(make_candidates(2), rankings_per_prompt=3).round_id
        go_on.set()
        first = rank(store, round_id, "bob")
        assert store.claim(round_id, "eve", lease_s=20).task_id == first
        passed = store.claim(round_id, "gus")
        second = rank(store, round_id, "cora")
        assert store.claim(round_id, "dan", lease_s=20).task_id == second != first
        store.skip(passed.assignment_id, "gus", reason="other")
        clock.now += 21
        go_on.clear()
        stopped.clear()
        with ThreadPoolExecutor() as pool:
            with store.write() as submitting:
                submitting.execute(select(task.c.id).where(task.c.id == second).with_for_update())
                bobs = pool.submit(store.claim, round_id, "bob")
                assert stopped.wait(20)
            coras = pool.submit(store.claim, round_id, "cora")
            time.sleep(0.5)  # until she waits, whatever for
            go_on.set()
            assert bobs.result(timeout=20).task_id == second
            assert coras.result(timeout=20).task_id == first
        with store.read() as connection:
            assert connection.exec_driver_sql(RECOUNT).all() == []


@pytest.mark.engines
def test_others_submit_while_one_claims(new_postgresql, clock, bob_pauses):
    stopped, go_on = bob_pauses
    with LabelStore.open(new_postgresql(), clock=clock) as store, ThreadPoolExecutor() as pool:
        round_id = store.publish_round(make_candidates(2), rankings_per_prompt=2).round_id
        card = store.claim(round_id, "eve")
        bobs = pool.submit(store.claim, round_id, "bob")
        assert stopped.wait(20)
        assert pool.submit(submission, store, card, "eve", "eves-first").result(timeout=10).counted
        go_on.set()
        assert bobs.result(timeout=20) is not None


@pytest.mark.engines
@pytest.mark.parametrize("work", ["shared", "turn"])
def test_a_freeze_waits_for_work_in_the_round(new_postgresql, clock, work):
    with LabelStore.open(new_postgresql(), clock=clock) as store, ThreadPoolExecutor() as pool:
        round_id = store.publish_round(make_candidates(2), rankings_per_prompt=2).round_id
        rank(store, round_id, "eve")
        with store.write() as working:
            find_round(working, round_id, lock=work)
            frozen = pool.submit(store.freeze, round_id, allow_incomplete=True)
            time.sleep(0.5)
            assert not frozen.done()
        assert frozen.result(timeout=20)


@pytest.mark.engines
def test_a_task_that_is_filled_while_a_claim_waits_for_it(new_postgresql, clock):
    with LabelStore.open(new_postgresql(), clock=clock) as store, ThreadPoolExecutor() as pool:
        round_id = store.publish_round(make_candidates(2), rankings_per_prompt=1).round_id
        with store.write() as submitting:  # a late one
            first = update(task).where(task.c.position == 0).values(done=1, state="complete")
            submitting.execute(first)
            bobs = pool.submit(store.claim, round_id, "bob")
            time.sleep(0.5)
        assert bobs.result(timeout=20).messages[0].content == "Question number 1?"


@pytest.mark.engines
def test_a_sign_of_life_waits_for_nobody(new_postgresql, clock):
    """Or it could hold one card and wait for the other, while a claim does so the other way."""
    with LabelStore.open(new_postgresql(), clock=clock) as store, ThreadPoolExecutor() as pool:
        round_id = store.publish_round(make_candidates(2), rankings_per_prompt=2).round_id
        card = store.claim(round_id, "ada").assignment_id
        cards = [card, store.claim(round_id, "ada", beside=card).assignment_id]
        for taken in cards:
            with store.write() as claiming:
                this = update(assignment).where(assignment.c.id == taken)
                claiming.execute(this.values(leased_ms=assignment.c.leased_ms))
                assert pool.submit(store.keep_alive, cards, "ada").result(timeout=10) == 1
        with store.write() as drafting:
            content = {"assignment_id": card, "content": {}, "saved_ms": 0}
            drafting.execute(draft.insert().values(**content))
            assert pool.submit(store.keep_alive, cards, "ada").result(timeout=10) == 2


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
