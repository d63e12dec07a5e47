"""Reward-model accuracy against the length baseline, on hand-worked pairs."""

import pytest
from evaluation_records import RESAMPLING, candidate

from alignment.errors import DataError, NumericsError
from alignment.evaluation.gold_correlation import gold_correlations
from alignment.evaluation.pair_accuracy import (
    ScoredPair,
    cross_validated_accuracy,
    pair_accuracy,
    pairs_by_gold,
)


def pair(prompt, scores, tokens, fold=0):
    return ScoredPair(
        prompt_id=prompt,
        better_score=scores[0],
        worse_score=scores[1],
        better_tokens=tokens[0],
        worse_tokens=tokens[1],
        fold=fold,
    )


def test_model_and_length_are_judged_on_the_same_pairs():
    pairs = [
        pair("p", scores=(2, 1), tokens=(5, 9)),  # both right
        pair("p", scores=(1, 1), tokens=(9, 5)),  # model ties, length wrong
        pair("q", scores=(3, 1), tokens=(7, 7)),  # model right, length ties
        pair("q", scores=(0, 1), tokens=(9, 5)),  # both wrong
    ]
    result = pair_accuracy(pairs, resampling=RESAMPLING)
    assert result.accuracy.value == pytest.approx(2.5 / 4)
    assert result.length_baseline.value == pytest.approx(1.5 / 4)
    assert result.difference.value == pytest.approx(0.25)
    assert (result.accuracy.n, result.accuracy.clusters) == (4, 2)


def test_the_difference_is_paired():
    pairs = [  # the model copies the length rule: accuracies vary by prompt, the difference not
        pair(f"p{i}", scores=(1, 0) if i % 2 else (0, 1), tokens=(5, 9) if i % 2 else (9, 5))
        for i in range(20)
    ]
    result = pair_accuracy(pairs, resampling=RESAMPLING)
    assert result.accuracy.high - result.accuracy.low > 0.1
    assert (result.difference.low, result.difference.high) == (0.0, 0.0)


def test_gold_orders_pairs_within_a_prompt_and_drops_its_ties():
    candidates = [
        candidate("p", gold_total=0.2, reward_score=1.0, response_tokens=3),
        candidate("p", gold_total=0.8, reward_score=2.0, response_tokens=4),
        candidate("p", gold_total=0.8, reward_score=3.0, response_tokens=5),
        candidate("q", gold_total=0.9, reward_score=4.0, response_tokens=6),
    ]
    pairs = pairs_by_gold(candidates, probes=True)
    assert [(p.better_score, p.worse_score) for p in pairs] == [(2.0, 1.0), (3.0, 1.0)]
    assert [(p.better_tokens, p.worse_tokens) for p in pairs] == [(4, 3), (5, 3)]


def test_probes_can_be_left_out():
    candidates = [
        candidate("p", gold_total=0.2),
        candidate("p", gold_total=0.8),
        candidate("p", gold_total=0.0, is_probe=True),
    ]
    assert len(pairs_by_gold(candidates, probes=True)) == 3
    assert len(pairs_by_gold(candidates, probes=False)) == 1


def test_cross_validation_pools_folds_and_shows_each():
    pairs = [
        pair("p", scores=(2, 1), tokens=(5, 9), fold=0),
        pair("q", scores=(2, 1), tokens=(5, 9), fold=1),
        pair("r", scores=(1, 2), tokens=(5, 9), fold=1),
    ]
    result = cross_validated_accuracy(pairs, resampling=RESAMPLING)
    assert result.pooled.accuracy.value == pytest.approx(2 / 3)
    assert result.by_fold == {0: 1.0, 1: 0.5}


def test_a_prompt_in_two_folds_is_a_leak():
    pairs = [
        pair("p", scores=(2, 1), tokens=(5, 9), fold=0),
        pair("p", scores=(2, 1), tokens=(5, 9), fold=1),
    ]
    with pytest.raises(DataError, match="'p' lies in folds 0 and 1"):
        cross_validated_accuracy(pairs, resampling=RESAMPLING)


def test_one_fold_is_no_cross_validation():
    pairs = [pair(p, scores=(2, 1), tokens=(5, 9)) for p in "pq"]
    with pytest.raises(DataError, match="1 fold"):
        cross_validated_accuracy(pairs, resampling=RESAMPLING)


def test_no_pairs_and_broken_scores_are_refused():
    with pytest.raises(DataError, match="no pair"):
        pair_accuracy([], resampling=RESAMPLING)
    with pytest.raises(NumericsError, match=r"nan and 0 of prompt 'p'"):
        pair_accuracy([pair("p", scores=(float("nan"), 0), tokens=(1, 1))], resampling=RESAMPLING)


def test_correlation_of_gold_with_surface_features_and_components():
    candidates = [
        candidate(
            gold_total=0.1 * i,
            response_tokens=20 - i,
            gold_components={"finished": i % 2, "plain": 1.0},
        )
        for i in range(6)
    ]
    table = {
        c.feature: c
        for c in gold_correlations([*candidates, candidate(is_probe=True, gold_total=9)])
    }
    assert table["response_tokens"].pearson == pytest.approx(-1.0)
    assert table["gold/finished"].pearson == pytest.approx(0.2927700)  # 1.5 / sqrt(17.5 * 1.5)
    assert table["gold/plain"].pearson is None
    assert table["finished"].pearson is None
    assert {c.n for c in table.values()} == {6}


def test_a_correlation_needs_two_sampled_candidates():
    with pytest.raises(DataError, match="1 sampled candidates"):
        gold_correlations([candidate(), candidate(is_probe=True)])
