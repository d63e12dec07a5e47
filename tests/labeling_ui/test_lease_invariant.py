"""Whatever labelers do and whatever the clock does: leases and rankings never exceed the overlap.

Also what was acknowledged stays, on SQLite and PostgreSQL.
"""

import contextlib
import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rounds_for_tests import make_candidates

from alignment.errors import LabelError
from benchmarks.labeling.served import OVER_OR_MISCOUNTED
from labeling_ui.lead import set_round_state

LABELERS = ("Ada", "Bob", "Cyd", "Dan")
who = st.sampled_from(LABELERS)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("claim"), who),
        st.tuples(st.just("ahead"), who),
        st.tuples(st.just("submit"), who, st.integers(0, 5)),
        st.tuples(st.just("again"), st.integers(0, 20)),
        st.tuples(st.just("revise"), who, st.integers(0, 5)),
        st.tuples(st.just("skip"), who, st.integers(0, 5)),
        st.tuples(st.just("reopen"), who, st.integers(0, 5)),
        st.tuples(st.just("clock"), st.sampled_from([5, 61, 700, -3600, 10**8, -(10**8)])),
        st.tuples(st.just("state"), st.sampled_from(["open", "paused", "closed"])),
    ),
    max_size=40,
)
numbers = itertools.count()


class Play:
    """One round with what each labeler was given and what was acknowledged."""

    def __init__(self, store, clock):
        self.store, self.clock = store, clock
        candidates = make_candidates(3 + next(numbers) % 2, responses=2)
        self.round_id = store.publish_round(
            candidates, rankings_per_prompt=2, name="play", panel=""
        ).round_id
        self.cards = {name: [] for name in LABELERS}
        self.sent = []

    def claim(self, name, beside=None):
        card = self.store.claim(self.round_id, name, lease_s=60, beside=beside)
        if card is not None:
            self.cards[name].append(card)

    def ahead(self, name):
        held = self.cards[name]
        self.claim(name, held[-1].assignment_id if held else None)

    def card(self, name, place):
        return self.cards[name][place % len(self.cards[name])] if self.cards[name] else None

    def submit(self, name, place, revise=False):
        card = self.card(name, place)
        if card is None:
            return
        call = (card.assignment_id, name, f"submission-{next(numbers)}", revise)
        self.sent.append((call, self._send(*call)))

    def revise(self, name, place):
        self.submit(name, place, revise=True)

    def again(self, place):
        if self.sent:
            call, receipt = self.sent[place % len(self.sent)]
            assert self._send(*call).submission_id == receipt.submission_id

    def _send(self, assignment_id, name, submission_id, revise):
        return self.store.submit(
            assignment_id, name, submission_id=submission_id, tiers=[0, 1], revise=revise
        )

    def skip(self, name, place):
        card = self.card(name, place)
        if card is not None:
            self.store.skip(card.assignment_id, name, reason="other")

    def reopen(self, name, place):
        card = self.card(name, place)
        if card is not None:
            self.store.reopen(card.assignment_id, name)

    def state(self, state):
        set_round_state(self.store, self.round_id, state, actor="test")

    def check(self):
        with self.store.read() as connection:
            assert connection.execute(OVER_OR_MISCOUNTED).all() == []
            stored = set(connection.exec_driver_sql("SELECT id FROM annotation").scalars())
        assert {receipt.submission_id for _, receipt in self.sent} <= stored
        status = self.store.progress(self.round_id)
        counted = self.store.rankings(self.round_id)
        assert len(counted) == status.rankings_done <= status.rankings_wanted


@pytest.mark.engines
def test_no_step_breaks_the_invariant(new_label_store):
    @settings(
        max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    @given(steps)
    def play(chosen):
        store, clock = new_label_store()
        game = Play(store, clock)
        for name, *arguments in chosen:
            if name == "clock":
                clock.now += arguments[0]
            else:
                # Refused in words; the state must be right all the same.
                with contextlib.suppress(LabelError):
                    getattr(game, name)(*arguments)
            game.check()
        store.close()

    play()
