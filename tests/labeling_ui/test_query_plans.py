"""Every statement on a labeler's way is an index search: its cost does not grow with the round."""

import pytest
from rounds_for_tests import make_candidates, submission

from benchmarks.labeling.plans import is_whole_read, recorded, unsearched, whole_reads
from labeling_ui.checks import attention_items
from labeling_ui.judgement import RoundSettings

NAMES = ("Ada", "Bob")


def work_a_day(store, clock, round_id):
    """Claims, submits, skips and takes skips back, on time and late."""
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


@pytest.mark.engines
def test_no_statement_reads_a_whole_table(store, clock):
    candidates = make_candidates(30)
    round_id = store.publish_round(
        candidates,
        rankings_per_prompt=2,
        settings=RoundSettings(attention_share=0.2, repeat_share=0.2),
        checks=attention_items(candidates, 5),
    ).round_id
    for name in NAMES:  # a new name is counted among all names, once
        store.claim(round_id, name)
    with recorded(store) as statements:
        work_a_day(store, clock, round_id)
    assert len(statements) > 25
    assert whole_reads(store, statements, forced=True) == []


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
    assert is_whole_read(step) is scan


def test_what_counts_as_a_whole_read():
    search = {"Node Type": "Index Scan", "Index Cond": "(id = 1)", "Relation Name": "task"}
    whole = {"Node Type": "Index Only Scan", "Relation Name": "labeler"}
    table = {"Node Type": "Seq Scan", "Relation Name": "task"}
    plan = {"Node Type": "Limit", "Plans": [search, whole, {"Node Type": "Sort", "Plans": [table]}]}
    assert list(unsearched(plan)) == ["Index Only Scan of labeler", "Seq Scan of task"]
