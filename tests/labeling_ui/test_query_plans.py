"""Every statement on a labeler's way is an index search: its cost does not grow with the round."""

import re

import pytest
from rounds_for_tests import make_candidates, submission
from sqlalchemy import event

from labeling_ui.checks import attention_items
from labeling_ui.judgement import RoundSettings


def statements_of_a_day(store, clock):
    """(statement, parameters) of claiming, submitting, revising, skipping, taking back."""
    candidates = make_candidates(30)
    settings = RoundSettings(attention_share=0.2, repeat_share=0.2)
    round_id = store.publish_round(
        candidates,
        rankings_per_prompt=2,
        settings=settings,
        checks=attention_items(candidates, 5),
    ).round_id
    seen = {}

    def note(connection, cursor, statement, parameters, context, executemany):
        if statement.lstrip().upper().startswith(("SELECT", "UPDATE", "DELETE", "INSERT")):
            seen.setdefault(statement, parameters)

    event.listen(store._engine, "before_cursor_execute", note)
    for name in ("Ada", "Bob"):
        for number in range(20):
            card = store.claim(round_id, name)
            ahead = store.claim(round_id, name, beside=card.assignment_id)
            submission(store, card, name, f"{name}-{number:04d}")
            if number == 5:
                clock.now += 2000  # every lease runs out
            if number % 7 == 3:
                store.skip(ahead.assignment_id, name, reason="other")
                store.reopen(ahead.assignment_id, name)
            store.keep_alive([ahead.assignment_id], name)
            store.labeler_progress(round_id, name)
            store.progress(round_id)
            store.settings(round_id)
    event.remove(store._engine, "before_cursor_execute", note)
    return seen


def test_no_statement_reads_a_whole_table(store, clock):
    seen = statements_of_a_day(store, clock)
    assert len(seen) > 25
    postgresql = store._engine.dialect.name == "postgresql"
    scans = []
    with store._engine.connect() as connection:
        if postgresql:  # with tables this small it would not look into an index by itself
            connection.exec_driver_sql("SET enable_seqscan = off")
        explain = "EXPLAIN " if postgresql else "EXPLAIN QUERY PLAN "
        for statement, parameters in seen.items():
            plan = connection.exec_driver_sql(explain + statement, parameters).all()
            lines = [str(row[0] if postgresql else row[3]) for row in plan]
            scans += [(line, statement) for line in lines if is_scan(line)]
    # Guidelines are a handful of versions, of which the newest is asked for.
    found = [(line, statement) for line, statement in scans if "guideline" not in line]
    assert found == []


def is_scan(line):
    if "Seq Scan" in line:
        return True
    if not re.match(r"SCAN ", line):
        return False
    return not re.match(r"SCAN (\(subquery|anon_\d|CONSTANT)", line)


@pytest.mark.parametrize(
    ("line", "scan"),
    [
        ("SCAN task", True),
        ("Seq Scan on task  (cost=0.00)", True),
        ("SEARCH task USING INDEX task_next (round_id=?)", False),
        ("SCAN anon_1", False),
    ],
)
def test_what_counts_as_a_scan(line, scan):
    assert is_scan(line) is scan
