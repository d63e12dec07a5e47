"""Every statement on a labeler's way is an index search: its cost does not grow with the round."""

import json
import re

import pytest
from rounds_for_tests import make_candidates, submission
from sqlalchemy import event

from labeling_ui.checks import attention_items
from labeling_ui.judgement import RoundSettings

NAMES = ("Ada", "Bob")


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
    for name in NAMES:  # a new name is counted among all names, once
        store.claim(round_id, name)
    seen = {}

    def note(connection, cursor, statement, parameters, context, executemany):
        if statement.lstrip().upper().startswith(("SELECT", "UPDATE", "DELETE", "INSERT")):
            seen.setdefault(statement, parameters)

    event.listen(store._engine, "before_cursor_execute", note)
    for name in NAMES:
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
    scans = []
    with store._engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            # With tables this small it would not look into an index by itself.
            connection.exec_driver_sql("SET enable_seqscan = off")
            find = postgresql_scans
        else:
            find = sqlite_scans
        for statement, parameters in seen.items():
            scans += [(found, statement) for found in find(connection, statement, parameters)]
    # Guidelines are a handful of versions, of which the newest is asked for.
    assert [found for found in scans if "guideline" not in found[0]] == []


def sqlite_scans(connection, statement, parameters):
    """Steps of the plan that read a whole table or index."""
    plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
    return [row[3] for row in plan if is_sqlite_scan(row[3])]


def is_sqlite_scan(step):
    return bool(re.match(r"SCAN (?!\(subquery|anon_\d|CONSTANT)", step))


def postgresql_scans(connection, statement, parameters):
    """Nodes of the plan that read a whole table or index."""
    plan = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar_one()
    plan = json.loads(plan) if isinstance(plan, str) else plan
    return list(whole_reads(plan[0]["Plan"]))


def whole_reads(node):
    kind = node["Node Type"]
    if kind == "Seq Scan" or ("Index" in kind and "Index Cond" not in node):
        yield f"{kind} of {node.get('Relation Name', node.get('Index Name'))}"
    for below in node.get("Plans", ()):
        yield from whole_reads(below)


@pytest.mark.parametrize(
    ("step", "scan"),
    [
        ("SCAN task", True),
        ("SCAN labeler USING COVERING INDEX sqlite_autoindex_labeler_2", True),
        ("SEARCH task USING INDEX task_next (round_id=?)", False),
        ("SCAN anon_1", False),
    ],
)
def test_what_counts_as_a_scan(step, scan):
    assert is_sqlite_scan(step) is scan


def test_what_counts_as_a_whole_read():
    search = {"Node Type": "Index Scan", "Index Cond": "(id = 1)", "Relation Name": "task"}
    whole = {"Node Type": "Index Only Scan", "Relation Name": "labeler"}
    table = {"Node Type": "Seq Scan", "Relation Name": "task"}
    plan = {"Node Type": "Limit", "Plans": [search, whole, {"Node Type": "Sort", "Plans": [table]}]}
    assert list(whole_reads(plan)) == ["Index Only Scan of labeler", "Seq Scan of task"]
