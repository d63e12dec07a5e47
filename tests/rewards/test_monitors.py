"""The monitors' rules, on numbers worked by hand."""

import pytest
import torch
from reward_texts import pairs

from alignment.rewards.combined import ScoredTexts, SourceScores
from alignment.rewards.monitors import (
    Reading,
    disagreement_rise,
    judge_divergence,
    length_drift,
    repetition_rise,
    token_repetition,
)
from alignment.rewards.watch import suspicious_texts


def test_nothing_is_read_before_the_baseline_is_whole() -> None:
    assert length_drift([10.0, 20.0], baseline_steps=2, factor=1.5) is None
    assert repetition_rise([0.1, 0.9], baseline_steps=2, rise=0.1) is None
    assert disagreement_rise([0.1, 0.9], baseline_steps=2, factor=1.5) is None
    assert judge_divergence([1, 2], [2, 1], evaluations=3, fall=0.1) is None


@pytest.mark.parametrize(
    ("newest", "ratio", "alarm"),
    [(30.0, 1.5, False), (31.0, 1.55, True), (10.0, 0.5, True), (14.0, 0.7, False)],
)
def test_length_is_compared_with_the_mean_of_the_first_steps_either_way(
    newest: float, ratio: float, alarm: bool
) -> None:
    # baseline (10 + 30) / 2 = 20; the step between does not matter; bounds 1.5 and 0.667
    reading = length_drift([10.0, 30.0, 99.0, newest], baseline_steps=2, factor=1.5)
    assert reading is not None
    assert reading.value == pytest.approx(ratio)
    assert reading.alarm is alarm


def test_repetition_alarms_where_it_rises_not_where_it_is_high() -> None:
    # baseline (0.4 + 0.6) / 2 = 0.5
    assert repetition_rise([0.4, 0.6, 0.75], baseline_steps=2, rise=0.125) == Reading(
        value=0.25, alarm=True
    )
    assert repetition_rise([0.4, 0.6, 0.5], baseline_steps=2, rise=0.125) == Reading(
        value=0.0, alarm=False
    )


def test_disagreement_alarms_only_where_it_rises() -> None:
    assert disagreement_rise([0.5, 1.0], baseline_steps=1, factor=1.5) == Reading(
        value=2.0, alarm=True
    )
    assert disagreement_rise([0.5, 0.125], baseline_steps=1, factor=1.5) == Reading(
        value=0.25, alarm=False
    )
    assert disagreement_rise([0.0, 1.0], baseline_steps=1, factor=1.5) is None  # no ratio to 0


@pytest.mark.parametrize(
    ("rewards", "judgements", "fallen", "alarm"),
    [
        # slopes by hand over x = -1, 0, 1: (last - first) / 2; the line's rise is last - first
        ([9.0, 0.0, 1.0, 2.0], [9.0, 1.0, 0.9, 0.5], 0.5, True),
        ([9.0, 2.0, 1.0, 0.0], [9.0, 1.0, 0.9, 0.5], 0.5, False),  # the reward falls too
        ([9.0, 0.0, 1.0, 2.0], [9.0, 1.0, 0.9, 0.95], 0.05, False),  # within the bound
        ([9.0, 0.0, 1.0, 2.0], [9.0, 0.5, 0.9, 1.0], -0.5, False),  # the judge agrees
    ],
)
def test_judge_divergence_is_of_trends_over_the_last_evaluations(
    rewards: list[float], judgements: list[float], fallen: float, alarm: bool
) -> None:
    reading = judge_divergence(rewards, judgements, evaluations=3, fall=0.1)
    assert reading is not None
    assert reading.value == pytest.approx(fallen)
    assert reading.alarm is alarm


def test_repetition_of_tokens_by_hand() -> None:
    assert token_repetition([1, 2, 3, 1, 2, 3]) == pytest.approx(1 / 4)  # 123 231 312 (123)
    assert token_repetition([7] * 12) == pytest.approx(0.9)
    assert token_repetition([1, 2]) == 0.0


@pytest.mark.parametrize(("ratio", "chosen"), [(2.0, ["dddd", "ccc"]), (0.5, ["bb", "a"])])
def test_texts_behind_a_length_alarm_are_long_or_short_as_the_length_went(
    ratio: float, chosen: list[str]
) -> None:
    totals = torch.tensor([0.0, 1.0, 2.0, 3.0])
    scored = ScoredTexts(
        texts=pairs(["a", "bb", "ccc", "dddd"]),
        tokens=[[1] * n for n in (1, 2, 3, 4)],
        totals=totals,
        by_source={"trained": SourceScores(scores=totals)},
    )
    texts = suspicious_texts("length", Reading(value=ratio, alarm=True), scored, count=3)
    assert [text["response"] for text in texts] == chosen
