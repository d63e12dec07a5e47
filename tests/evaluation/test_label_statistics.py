"""Agreement among labelers and with gold, worked by hand."""

import pytest
from evaluation_records import RESAMPLING

from alignment.errors import DataError
from alignment.evaluation.label_statistics import label_statistics
from alignment.records import Ranking


def ranked(labeler, prompt, **tiers):
    return Ranking(
        annotation_id=f"{labeler}-{prompt}",
        prompt_id=prompt,
        labeler=labeler,
        response_ids=tuple(f"{prompt}-{name}" for name in tiers),
        tiers=tuple(tiers.values()),
    )


ROUND = [
    ranked("ann", "p", a=0, b=1),
    ranked("bob", "p", b=1, a=0),  # same verdict, other order on the card
    ranked("ann", "q", a=0, b=0),  # a tie
    ranked("bob", "q", a=0, b=1),
]
GOLD = {"p-a": 0.9, "p-b": 0.1, "q-a": 0.2, "q-b": 0.7}


def statistics(rankings=ROUND, gold=GOLD, panel=""):
    return label_statistics(rankings, panel=panel, gold=gold, resampling=RESAMPLING)


def test_agreement_counts_same_verdicts_fully_and_a_lone_tie_half():
    result = statistics()
    assert result.agreement.value == pytest.approx(0.75)
    assert (result.prompts, result.responses, result.rankings) == (2, 4, 4)
    assert result.tie_share == pytest.approx(0.25)


def test_each_labeler_is_held_against_gold_and_the_others():
    ann, bob = statistics().labelers
    assert (ann.name, ann.rankings, ann.tie_share) == ("ann", 2, 0.5)
    assert ann.gold_agreement.value == pytest.approx(0.75)  # right, then a tie
    assert bob.gold_agreement.value == pytest.approx(0.5)  # right, then wrong
    assert ann.agreement == bob.agreement == statistics().agreement


def test_a_lone_labeler_agrees_with_nobody():
    result = statistics([r for r in ROUND if r.labeler == "ann"], gold=None)
    assert result.agreement is None
    assert result.labelers[0].agreement is None
    assert result.labelers[0].gold_agreement is None


def test_gold_must_cover_every_response():
    with pytest.raises(DataError, match=r"1 ranked responses .* e\.g\. 'q-b'"):
        statistics(gold={k: v for k, v in GOLD.items() if k != "q-b"})


def test_an_empty_round_is_refused():
    with pytest.raises(DataError, match="no ranking"):
        statistics([])


def test_pairs_that_gold_does_not_tell_apart_are_left_out():
    rounds = [*ROUND, ranked("bob", "r", a=0, b=1)]
    bob = statistics(rounds, gold=GOLD | {"r-a": 0.4, "r-b": 0.4}).labelers[1]
    assert (bob.gold_agreement.value, bob.gold_agreement.n) == (0.5, 2)
