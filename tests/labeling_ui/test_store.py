import dataclasses
import sqlite3

import pytest
from rounds_for_tests import make_candidates, rank_everything, submission

from alignment.errors import LabelError, StoreError
from alignment.records import CandidateSet, Message, Prompt, Response
from labeling_ui.cards import SKIP_REASONS
from labeling_ui.lead import set_round_state
from labeling_ui.store import LabelStore


def test_one_ranking_goes_all_the_way(store, candidates):
    status = store.publish_round(candidates, rankings_per_prompt=1, name="round one")
    assert (status.tasks, status.rankings_wanted, status.rankings_done) == (2, 2, 0)
    assert status.name == "round one"
    assert not status.complete

    card = store.claim(status.round_id, "Ada")
    assert card.messages == candidates[0].prompt.messages
    assert [r.label for r in card.responses] == ["A", "B", "C"]
    assert {r.text for r in card.responses} == {"text 0.0", "text 0.1", "text 0.2"}

    wanted = {"text 0.0": 1, "text 0.1": 0, "text 0.2": 1}  # response 1 best, the others tied
    receipt = store.submit(
        card.assignment_id,
        "Ada",
        submission_id="submission-1",
        tiers=[wanted[r.text] for r in card.responses],
    )
    assert receipt.counted
    assert not receipt.round_complete
    (ranking,) = store.rankings(status.round_id)
    assert ranking.prompt_id == "p0"
    assert ranking.response_ids == ("p0-r0", "p0-r1", "p0-r2")
    assert ranking.tiers == (1, 0, 1)
    assert ranking.labeler == "person-1"
    assert ranking.annotation_id == "submission-1"


def test_publishing_again_gives_the_same_round(store, candidates):
    first = store.publish_round(candidates, rankings_per_prompt=2, name="a")
    rank_everything(store, first.round_id, ["Ada"])
    again = store.publish_round(candidates, rankings_per_prompt=2, name="b")
    assert again.round_id == first.round_id
    assert again.rankings_done == 2
    assert len(store.rounds()) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"rankings_per_prompt": 3},
        {"panel": "simulated"},
        {"candidates": make_candidates(prompts=3)},
    ],
)
def test_other_content_is_another_round(store, candidates, change):
    settings = {"candidates": candidates, "rankings_per_prompt": 2}
    first = store.publish_round(**settings)
    assert store.publish_round(**(settings | change)).round_id != first.round_id


def test_origin_neither_changes_the_round_nor_enters_the_database(store, store_path, candidates):
    first = store.publish_round(candidates, rankings_per_prompt=1)
    renamed = [
        dataclasses.replace(
            c, responses=tuple(dataclasses.replace(r, origin="other") for r in c.responses)
        )
        for c in candidates
    ]
    assert store.publish_round(renamed, rankings_per_prompt=1).round_id == first.round_id
    store.close()
    assert b"secret-model" not in store_path.read_bytes()


def _set(responses, *, prompt_id="p", messages=None):
    messages = messages or (Message(role="user", content="Why?"),)
    return CandidateSet(prompt=Prompt(id=prompt_id, messages=messages), responses=responses)


def _responses(*texts):
    return tuple(Response(id=f"r{i}", text=text) for i, text in enumerate(texts))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "at least one prompt"),
        ([_set(_responses("only one"))], "prompt 'p' has 1 response"),
        ([_set(_responses(*"0123456789"))], "10 response"),
        ([_set((Response(id="r", text="a"), Response(id="r", text="b")))], "twice: \\['r'\\]"),
        ([_set((Response(id="\x1b[2J", text="a"),) * 2)], r"\\x1b\[2J"),
        ([_set(_responses("a", "b")), _set(_responses("c", "d"))], "appears twice in the round"),
        ([_set(_responses("a", "b\ud800"))], "response 'r1' is not valid Unicode"),
        (
            [_set(_responses("a", "b"), messages=(Message(role="assistant", content="Hi"),))],
            "ends with 'assistant'",
        ),
    ],
)
def test_candidates_nobody_could_rank_are_refused_and_nothing_is_written(store, bad, message):
    with pytest.raises(LabelError, match=message):
        store.publish_round(bad, rankings_per_prompt=1)
    assert store.rounds() == []


def test_identical_texts_are_shown_once_and_tied(store):
    candidates = [_set(_responses("same", "other", "same"))]
    round_id = store.publish_round(candidates, rankings_per_prompt=1).round_id
    card = store.claim(round_id, "Ada")
    assert sorted(r.text for r in card.responses) == ["other", "same"]
    tiers = [1 if r.text == "same" else 0 for r in card.responses]
    store.submit(card.assignment_id, "Ada", submission_id="submission-1", tiers=tiers)
    assert store.rankings(round_id)[0].tiers == (1, 0, 1)


def test_a_prompt_with_nothing_to_rank_is_left_out(store):
    candidates = [_set(_responses("same", "same"), prompt_id="p0"), make_candidates()[1]]
    status = store.publish_round(candidates, rankings_per_prompt=1)
    assert (status.tasks, status.tasks_left_out, status.rankings_wanted) == (2, 1, 1)
    rank_everything(store, status.round_id, ["Ada"])
    assert store.progress(status.round_id).complete


def test_long_and_hostile_texts_come_back_unchanged(store):
    texts = ["x" * 60_000, "\x00\x1b[31m\u202e<script>alert(1)</script>\ufdd0\ufdd00\x000"]
    round_id = store.publish_round([_set(_responses(*texts))], rankings_per_prompt=1).round_id
    assert sorted(r.text for r in store.claim(round_id, "Ada").responses) == sorted(texts)


def test_cut_off_is_told(store):
    responses = (
        Response(id="a", text="Because", finish_reason="length"),
        Response(id="b", text="Because of rain.", finish_reason="stop"),
    )
    round_id = store.publish_round([_set(responses)], rankings_per_prompt=1).round_id
    card = store.claim(round_id, "Ada")
    assert {r.text: r.cut_off for r in card.responses} == {
        "Because": True,
        "Because of rain.": False,
    }


def test_claim_gives_the_held_card_back_in_the_same_order(store, store_path, clock):
    round_id = store.publish_round(make_candidates(1, 9), rankings_per_prompt=1).round_id
    card = store.claim(round_id, "Ada")
    assert store.claim(round_id, "Ada") == card
    with LabelStore.open(store_path, clock=clock) as restarted:
        assert restarted.claim(round_id, "Ada") == card


def test_orders_differ_between_labelers(store):
    round_id = store.publish_round(make_candidates(1, 9), rankings_per_prompt=8).round_id
    orders = {
        tuple(r.text for r in store.claim(round_id, f"labeler {n}").responses) for n in range(8)
    }
    assert len(orders) == 8  # 9! orders: a collision among 8 has probability below 1e-4


def test_never_more_labelers_than_rankings_wanted(store, candidates):
    round_id = store.publish_round(candidates, rankings_per_prompt=1).round_id
    first, second = store.claim(round_id, "Ada"), store.claim(round_id, "Bob")
    assert first.messages != second.messages
    assert store.claim(round_id, "Cem") is None


def test_no_prompt_twice_to_one_labeler(store, candidates):
    round_id = store.publish_round(candidates, rankings_per_prompt=3).round_id
    seen = rank_everything(store, round_id, ["Ada"])
    assert len(seen) == len(set(seen)) == 2


def test_an_expired_lease_goes_to_someone_else(store, clock):
    round_id = store.publish_round(make_candidates(1), rankings_per_prompt=1).round_id
    slow = store.claim(round_id, "Slow", lease_s=60)
    clock.now += 59
    assert store.claim(round_id, "Quick") is None
    clock.now += 2
    quick = store.claim(round_id, "Quick")
    assert quick.messages == slow.messages
    receipt = submission(store, quick, "Quick", "quick-submission")
    assert receipt.counted
    # The slow labeler's work is kept, but does not count beside the one ranking wanted.
    late = submission(store, slow, "Slow", "slow-submission")
    assert not late.counted
    assert submission(store, slow, "Slow", "slow-submission") == late
    assert [r.labeler for r in store.rankings(round_id)] == ["person-2"]
    assert store.progress(round_id).rankings_done == 1


def test_late_work_counts_while_there_is_room(store, clock):
    round_id = store.publish_round(make_candidates(2), rankings_per_prompt=1).round_id
    slow = store.claim(round_id, "Slow", lease_s=60)
    clock.now += 61
    quick = store.claim(round_id, "Quick", lease_s=60)  # takes the slow labeler's prompt over
    assert quick.messages == slow.messages
    clock.now += 61  # ... and lets it go as well
    assert submission(store, slow, "Slow", "slow-submission").counted
    assert not submission(store, quick, "Quick", "quick-submission").counted


def test_after_expiry_the_same_card_comes_back_in_the_same_order(store, clock):
    round_id = store.publish_round(make_candidates(1, 9), rankings_per_prompt=1).round_id
    card = store.claim(round_id, "Ada", lease_s=60)
    clock.now += 61
    store.claim(round_id, "Bob", lease_s=60)
    clock.now += 61
    assert store.claim(round_id, "Ada") == card


def test_a_submission_sent_twice_is_stored_once(store, candidates):
    round_id = store.publish_round(candidates, rankings_per_prompt=1).round_id
    card = store.claim(round_id, "Ada")
    first = submission(store, card, "Ada", "submission-1")
    assert submission(store, card, "Ada", "submission-1") == first
    assert store.progress(round_id).rankings_done == 1
    assert len(store.rankings(round_id)) == 1


def test_one_id_for_two_rankings_is_refused(store, candidates):
    round_id = store.publish_round(candidates, rankings_per_prompt=1).round_id
    card = store.claim(round_id, "Ada")
    submission(store, card, "Ada", "submission-1", tiers=[0, 1, 2])
    with pytest.raises(LabelError, match="already used for another ranking"):
        submission(store, card, "Ada", "submission-1", tiers=[2, 1, 0])
    with pytest.raises(LabelError, match="already ranked this card"):
        submission(store, card, "Ada", "submission-2", tiers=[2, 1, 0])
    assert len(store.rankings(round_id)) == 1


@pytest.mark.parametrize(
    ("tiers", "message"),
    [
        ([0, 1], "2 tiers, but the card shows 3"),
        ([], "whole numbers from 0"),
        ([1, 2, 3], "whole numbers from 0"),
        ([0, 2, 2], "without gaps"),
        ([0, -1, 1], "whole numbers from 0"),
        ([0, 1.0, 1], "whole numbers from 0"),
        ([False, True, True], "whole numbers from 0"),
        (["0", "1", "2"], "whole numbers from 0"),
    ],
)
def test_rankings_that_do_not_fit_are_refused(store, candidates, tiers, message):
    round_id = store.publish_round(candidates, rankings_per_prompt=1).round_id
    card = store.claim(round_id, "Ada")
    with pytest.raises(LabelError, match=message):
        submission(store, card, "Ada", "submission-1", tiers=tiers)
    assert submission(store, card, "Ada", "submission-1").counted  # the card is still open


def test_another_labelers_card_is_refused(store, candidates):
    round_id = store.publish_round(candidates, rankings_per_prompt=1).round_id
    card = store.claim(round_id, "Ada")
    store.claim(round_id, "Eve")
    with pytest.raises(LabelError, match="not yours"):
        submission(store, card, "Eve", "submission-1")
    with pytest.raises(LabelError, match="not yours"):
        store.skip(card.assignment_id, "Eve", reason="other")
    submission(store, card, "Ada", "submission-1")
    with pytest.raises(LabelError, match="not yours"):
        submission(store, card, "Eve", "submission-1")


@pytest.mark.parametrize("name", ["", " Ada", "x" * 61, "Ada\n", "\u202eAda", "simulated-1"])
def test_names_that_are_refused(store, candidates, name):
    round_id = store.publish_round(candidates, rankings_per_prompt=1).round_id
    with pytest.raises(LabelError, match="name"):
        store.claim(round_id, name)


def test_people_cannot_rank_a_simulated_round(store, candidates):
    round_id = store.publish_round(candidates, rankings_per_prompt=1, panel="simulated").round_id
    with pytest.raises(LabelError, match="belongs to the simulated panel"):
        store.claim(round_id, "Ada")


def test_a_skipped_prompt_goes_to_the_next_labeler(store):
    round_id = store.publish_round(make_candidates(1), rankings_per_prompt=2).round_id
    card = store.claim(round_id, "Ada")
    store.skip(card.assignment_id, "Ada", reason="expertise")
    store.skip(card.assignment_id, "Ada", reason="expertise")  # sent twice
    assert store.claim(round_id, "Ada") is None
    assert rank_everything(store, round_id, ["Bob", "Cem"])
    assert store.progress(round_id).complete
    with pytest.raises(LabelError, match="you have skipped this card"):
        submission(store, card, "Ada", "submission-1")


def test_a_prompt_skipped_by_as_many_as_should_rank_it_leaves_the_round(store, candidates):
    round_id = store.publish_round(candidates, rankings_per_prompt=1).round_id
    store.skip(store.claim(round_id, "Ada").assignment_id, "Ada", reason="broken")
    status = store.progress(round_id)
    assert (status.tasks_left_out, status.rankings_wanted) == (1, 1)
    assert [m.content for m in store.claim(round_id, "Bob").messages] == ["Question number 1?"]


def test_unknown_skip_reason_is_refused(store, candidates):
    round_id = store.publish_round(candidates, rankings_per_prompt=1).round_id
    card = store.claim(round_id, "Ada")
    with pytest.raises(LabelError, match="language, expertise"):
        store.skip(card.assignment_id, "Ada", reason="<script>")
    assert "language" in SKIP_REASONS


def test_freeze_closes_the_round(store):
    candidates = make_candidates(3)
    round_id = store.publish_round(candidates, rankings_per_prompt=1).round_id
    open_card = store.claim(round_id, "Slow")
    late_card = store.claim(round_id, "Late")
    with pytest.raises(LabelError, match="no rankings yet"):
        store.freeze(round_id, allow_incomplete=True)
    card = store.claim(round_id, "Ada")
    receipt = submission(store, card, "Ada", "submission-1")
    with pytest.raises(LabelError, match="1 of 3 rankings"):
        store.freeze(round_id)
    digest = store.freeze(round_id, allow_incomplete=True)
    assert len(digest) == 64
    assert store.freeze(round_id) == digest
    assert store.progress(round_id).frozen_digest == digest
    assert store.claim(round_id, "Bob") is None
    # Work on an open card is kept aside, an edit of what was frozen is refused.
    assert not submission(store, open_card, "Slow", "submission-2").counted
    with pytest.raises(LabelError, match="frozen"):
        store.submit(
            card.assignment_id, "Ada", submission_id="submission-3", tiers=[0, 0, 0], revise=True
        )
    with pytest.raises(LabelError, match="frozen"):
        store.skip(late_card.assignment_id, "Late", reason="other")
    # A retry of what was stored before the freeze still gets its receipt.
    assert submission(store, card, "Ada", "submission-1") == receipt
    assert len(store.rankings(round_id)) == 1


def test_cards_that_are_open_when_a_round_closes_still_count(store):
    round_id = store.publish_round(make_candidates(3), rankings_per_prompt=1).round_id
    held = store.claim(round_id, "Ada")
    set_round_state(store, round_id, "closed", actor="lead")
    assert store.claim(round_id, "Bob") is None
    assert store.claim(round_id, "Ada") == held  # a reload of the page does not take it away
    assert submission(store, held, "Ada", "submission-1").counted
    assert store.claim(round_id, "Ada") is None
    store.freeze(round_id, allow_incomplete=True)
    assert [r.annotation_id for r in store.rankings(round_id)] == ["submission-1"]


@pytest.mark.parametrize("jump_s", [10 * 365 * 86_400, -10 * 365 * 86_400])
def test_a_clock_that_was_wrong_keeps_no_card_from_others(store, clock, jump_s):
    """It jumps, a card is given out, it jumps back."""
    round_id = store.publish_round(make_candidates(1), rankings_per_prompt=1).round_id
    clock.now += jump_s
    card = store.claim(round_id, "Ada", lease_s=60)
    clock.now -= jump_s
    others = store.claim(round_id, "Bob", lease_s=60)
    assert others.task_id == card.task_id
    assert submission(store, others, "Bob", "submission-b").counted
    assert not submission(store, card, "Ada", "submission-a").counted  # kept as surplus
    assert store.progress(round_id).rankings_done == 1


def test_the_digest_is_of_the_rankings_alone(tmp_path, candidates):
    digests = []
    for n, tiers in enumerate([[0, 1, 2], [0, 1, 2], [2, 1, 0]]):
        with LabelStore.open(tmp_path / f"{n}.sqlite") as store:
            round_id = store.publish_round(candidates[:1], rankings_per_prompt=1).round_id
            card = store.claim(round_id, "Ada")
            tier_of = {f"text 0.{k}": tier for k, tier in enumerate(tiers)}
            shown = [tier_of[r.text] for r in card.responses]
            submission(store, card, "Ada", "submission-1", tiers=shown)
            digests.append(store.freeze(round_id))
    assert digests[0] == digests[1] != digests[2]


def test_rankings_come_in_published_order(store):
    round_id = store.publish_round(make_candidates(3), rankings_per_prompt=2).round_id
    rank_everything(store, round_id, ["Zoe", "Ada"])
    order = [(r.prompt_id, r.labeler) for r in store.rankings(round_id)]
    assert order == [(f"p{i}", f"person-{n}") for i in range(3) for n in (1, 2)]


def test_labeler_progress(store, candidates):
    round_id = store.publish_round(candidates, rankings_per_prompt=2).round_id
    assert store.labeler_progress(round_id, "Ada").left == 2
    card = store.claim(round_id, "Ada")
    assert store.labeler_progress(round_id, "Ada").left == 2
    submission(store, card, "Ada", "submission-1")
    progress = store.labeler_progress(round_id, "Ada")
    assert (progress.done, progress.left) == (1, 1)


def test_unknown_round(store, candidates):
    known = store.publish_round(candidates, rankings_per_prompt=1).round_id
    with pytest.raises(LabelError, match=f"no round 'nope'.*{known}"):
        store.progress("nope")


def test_annotations_are_append_only(store, store_path, candidates):
    round_id = store.publish_round(candidates, rankings_per_prompt=1).round_id
    submission(store, store.claim(round_id, "Ada"), "Ada", "submission-1")
    connection = sqlite3.connect(store_path)
    for statement in ("DELETE FROM annotation", "UPDATE annotation SET tiers = '[0,0,0]'"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


def test_durability_settings(store, sqlite_only):
    with store._engine.connect() as connection:
        pragma = lambda name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()  # noqa: E731
        assert pragma("journal_mode") == "wal"
        assert pragma("synchronous") == 2  # FULL
        assert pragma("foreign_keys") == 1


def test_other_files_are_refused_untouched(tmp_path):
    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE cake (flavour)")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="tables: cake"):
        LabelStore.open(other)

    garbage = tmp_path / "garbage.sqlite"
    garbage.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match=r"garbage.sqlite cannot be used: file is not a database"):
        LabelStore.open(garbage)
    assert garbage.read_bytes() == b"not a database at all" * 100


def test_a_full_disk_is_told_and_loses_nothing(store, candidates, sqlite_only):
    round_id = store.publish_round(candidates, rankings_per_prompt=1).round_id
    card = store.claim(round_id, "Ada")
    with store._engine.connect() as connection:  # SQLite reports a page limit as a full disk
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="database or disk is full"):
        store.publish_round(make_candidates(200), rankings_per_prompt=1)
    with store._engine.connect() as connection:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {2**30}")
    assert len(store.rounds()) == 1
    assert submission(store, card, "Ada", "submission-1").counted
