from collections import Counter

import pytest
from rounds_for_tests import make_candidates

from alignment.config import PanelConfig
from alignment.errors import LabelError
from alignment.gold_rubric import gold_score
from alignment.records import CandidateSet, Message, Prompt, Response
from labeling_ui.cards import Card, CardResponse
from labeling_ui.simulated_panel import labeler_names, panel_identity, rank_card, rank_round
from labeling_ui.store import LabelStore

PANEL = PanelConfig()
QUESTION = "Why is the ocean salty?"
GOOD = "Rivers carry salts from rocks into the ocean, where they stay behind."
MIDDLING = "Rivers carry salts from rocks into water and so on and"
POOR = "- Bananas\n- Bananas\n- Bananas"


def ocean_candidates(prompts=4):
    return [
        CandidateSet(
            prompt=Prompt(id=f"p{i}", messages=(Message(role="user", content=QUESTION),)),
            responses=(
                Response(id="poor", text=POOR, finish_reason="length"),
                Response(id="good", text=f"{GOOD} {i}.", finish_reason="stop"),
                Response(id="middling", text=MIDDLING, finish_reason="length"),
            ),
        )
        for i in range(prompts)
    ]


def run_panel(store, candidates, panel=PANEL, seed=0, rankings_per_prompt=3):
    round_id = store.publish_round(
        candidates, rankings_per_prompt=rankings_per_prompt, panel=panel_identity(panel, seed)
    ).round_id
    rank_round(store, round_id, panel, seed=seed)
    return store.rankings(round_id), store.freeze(round_id)


def test_the_panel_completes_a_round_and_says_what_it_is(store):
    rankings, _ = run_panel(store, make_candidates(8))
    assert len(rankings) == 24
    assert {r.labeler for r in rankings} == {
        "simulated-1",
        "simulated-2",
        "simulated-3",
        "simulated-spammer-1",
    }
    assert set(Counter(r.labeler for r in rankings).values()) == {6}
    assert store.rounds()[0].panel.startswith("simulated ")


def test_without_noise_honest_labelers_rank_by_gold(store):
    panel = PanelConfig(noise_sd=0.0, spammers=0)
    rankings, _ = run_panel(store, ocean_candidates(), panel)
    assert all(r.tiers == (2, 0, 1) for r in rankings)


def test_noise_flips_some_rankings_and_spares_most(store):
    panel = PanelConfig(noise_sd=0.12, spammers=0)
    rankings, _ = run_panel(store, ocean_candidates(20), panel)
    tops = Counter(r.tiers.index(0) for r in rankings)
    assert len({r.tiers for r in rankings}) > 1
    assert tops[1] > 50  # 'good' wins nearly always: gold differs by several noise deviations


def test_the_same_seed_gives_the_same_digest_in_any_store(tmp_path):
    digests = []
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        with LabelStore.open(tmp_path / f"{name}.sqlite") as store:
            rankings, digest = run_panel(store, ocean_candidates(), seed=seed)
            digests.append((digest, [r.tiers for r in rankings]))
    assert digests[0] == digests[1]
    assert digests[0][1] != digests[2][1]


def test_an_interrupted_panel_goes_on_to_the_same_rankings(tmp_path):
    with LabelStore.open(tmp_path / "whole.sqlite") as store:
        _, whole = run_panel(store, ocean_candidates(7))

    class InterruptedPanelError(Exception):
        pass

    class Interrupting(LabelStore):
        calls = 0

        def submit(self, *args, **kwargs):
            Interrupting.calls += 1
            if Interrupting.calls % 4 == 0:  # dies holding a card, at another labeler's turn
                raise InterruptedPanelError
            return super().submit(*args, **kwargs)

    path = tmp_path / "parts.sqlite"
    for _ in range(40):
        with Interrupting.open(path) as store:
            try:
                _, parts = run_panel(store, ocean_candidates(7))
                break
            except InterruptedPanelError:
                continue
    assert Interrupting.calls > 21
    assert parts == whole


def _card(order, task_id="t"):
    texts = {"good": GOOD, "middling": MIDDLING, "poor": POOR}
    return Card(
        assignment_id="a",
        task_id=task_id,
        messages=(Message(role="user", content=QUESTION),),
        language="en",
        responses=tuple(
            CardResponse(label=label, text=texts[name], cut_off=name != "good")
            for label, name in zip("ABC", order, strict=True)
        ),
    )


@pytest.mark.parametrize("labeler", ["simulated-1", "simulated-spammer-1"])
def test_display_order_does_not_change_the_ranking(labeler):
    panel = PanelConfig(noise_sd=1.0)
    one = rank_card(_card(["good", "middling", "poor"]), labeler, panel, seed=3)
    other = rank_card(_card(["poor", "good", "middling"]), labeler, panel, seed=3)
    assert (one[0], one[1], one[2]) == (other[1], other[2], other[0])


def test_scores_within_the_threshold_are_ties():
    gold = gold_score(QUESTION, GOOD, finished=True).total
    gap = gold - gold_score(QUESTION, MIDDLING, finished=False).total
    card = _card(["good", "middling", "poor"])
    above = PanelConfig(noise_sd=0.0, tie_threshold=gap + 0.01)
    below = PanelConfig(noise_sd=0.0, tie_threshold=gap - 0.01)
    assert rank_card(card, "simulated-1", above, seed=0)[:2] == (0, 0)
    assert rank_card(card, "simulated-1", below, seed=0)[:2] == (0, 1)


def test_spammers_ignore_quality():
    tops = Counter(
        rank_card(_card(["good", "middling", "poor"]), f"simulated-spammer-{n}", PANEL, seed=0)[:3]
        for n in range(300)
    )
    best = Counter(tiers.index(0) for tiers in tops.elements())
    assert all(70 <= best[k] <= 130 for k in range(3))  # 100 expected each, 4 deviations


def test_a_round_for_people_is_refused(store, candidates):
    round_id = store.publish_round(candidates, rankings_per_prompt=1).round_id
    with pytest.raises(LabelError, match="is for people, not for this panel"):
        rank_round(store, round_id, PANEL, seed=0)
    assert store.progress(round_id).rankings_done == 0


def test_too_few_labelers_is_told(store, candidates):
    panel = PanelConfig(labelers=1, spammers=1)
    with pytest.raises(LabelError, match="panel of 2 ended with 4 of 6"):
        run_panel(store, candidates, panel)


def test_names():
    assert labeler_names(PanelConfig(labelers=2, spammers=1)) == [
        "simulated-1",
        "simulated-2",
        "simulated-spammer-1",
    ]
