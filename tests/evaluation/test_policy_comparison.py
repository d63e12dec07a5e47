"""PPO against SFT: hand-worked levels, paired differences, win rates, and refused samples."""

from dataclasses import replace

import pytest
from evaluation_records import RESAMPLING, sampled, two_prompts

from alignment.errors import DataError, NumericsError
from alignment.evaluation.policy_comparison import QUANTITIES, compare_policies
from alignment.evaluation.samples import check_samples


def compare(samples):
    return compare_policies(samples, language="en", resampling=RESAMPLING)


def test_a_constant_gain_is_found_exactly():
    gains = {"p": 0.1, "q": 0.9}  # prompts differ a lot, the gain never does
    samples = [
        sampled(p, policy, gold_total=base + (0.05 if policy == "ppo" else 0))
        for p, base in gains.items()
        for policy in ("sft", "ppo")
    ]
    result = compare(samples)
    gold = result.difference["gold"]
    assert gold.value == pytest.approx(0.05)
    assert (gold.low, gold.high) == pytest.approx((0.05, 0.05))
    assert result.sft["gold"].value == pytest.approx(0.5)
    assert result.sft["gold"].high - result.sft["gold"].low > 0.5
    assert (gold.n, gold.clusters) == (2, 2)


def test_every_declared_quantity_and_gold_component_is_there():
    result = compare(two_prompts())
    expected = {*QUANTITIES, "gold/finished"}
    assert set(result.sft) == set(result.ppo) == set(result.difference) == expected
    assert set(result.win_rate) == {"gold", "reward_score"}


def test_texts_are_measured_in_words():
    samples = [
        sampled("p", "sft", text="a b a b a"),  # trigrams aba bab aba: 1 of 3 repeats
        sampled("p", "ppo", text="天空是蓝色的"),  # 6 characters
        sampled("q", "sft", text=""),
        sampled("q", "ppo", text="It's so, so-so!", finished=False),
    ]
    result = compare(samples)
    assert result.sft["repetition"].value == pytest.approx(1 / 6)
    assert result.sft["response_words"].value == pytest.approx(2.5)
    assert result.ppo["response_words"].value == pytest.approx(5.0)
    assert result.ppo["eos_rate"].value == pytest.approx(0.5)


def test_distinct_2_looks_across_the_samples_of_one_prompt():
    samples = [
        sampled(prompt, policy, sample, text=f"same start {word}")
        for prompt in ("p", "q")
        for policy in ("sft", "ppo")
        for sample, word in enumerate(("here", "here" if policy == "ppo" else "there"))
    ]
    result = compare(samples)
    assert result.sft["distinct_2"].value == pytest.approx(3 / 4)
    assert result.ppo["distinct_2"].value == pytest.approx(2 / 4)
    assert result.sft["distinct_2"].n == 2


def test_win_rate_counts_every_pair_and_half_of_each_tie():
    samples = [
        sampled("p", "sft", 0, gold_total=0.2),
        sampled("p", "sft", 1, gold_total=0.6),
        sampled("p", "ppo", 0, gold_total=0.6),  # beats 0.2, ties 0.6
        sampled("p", "ppo", 1, gold_total=0.1),  # loses twice
        sampled("q", "sft", 0, gold_total=0.0),
        sampled("q", "ppo", 0, gold_total=1.0),
    ]
    by_gold = compare(samples).win_rate["gold"]
    assert by_gold.value == pytest.approx((1 + 0.5 + 0 + 0 + 1) / 5)
    assert (by_gold.n, by_gold.clusters) == (5, 2)


def test_the_reward_model_judges_by_its_own_score():
    samples = [
        replace(s, reward_score=1.0 if s.policy == "ppo" else 0.0, gold_total=0.3)
        for s in two_prompts()
    ]
    result = compare(samples)
    assert result.win_rate["reward_score"].value == 1.0
    assert result.win_rate["gold"].value == 0.5


def test_other_languages_never_touch_the_headline():
    chinese = [
        sampled(p, policy, language="zh", gold_total=float(policy == "ppo"), kl_nats=99.0)
        for p in ("x", "y")
        for policy in ("sft", "ppo")
    ]
    assert compare(two_prompts() + chinese) == compare(two_prompts())


def test_without_a_rubric_there_is_no_gold():
    samples = [replace(s, gold_total=None, gold_components={}) for s in two_prompts()]
    result = compare(samples)
    assert "gold" not in result.sft
    assert set(result.win_rate) == {"reward_score"}


def test_the_order_of_samples_does_not_matter():
    samples = [replace(s, kl_nats=float(i)) for i, s in enumerate(two_prompts())]
    assert compare(samples) == compare(samples[::-1])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ([], "no evaluated samples"),
        (two_prompts()[:-1], "1 prompts have samples of sft but none of ppo, e.g. 'q'"),
        (two_prompts()[1:], "1 prompts have samples of ppo but none of sft, e.g. 'p'"),
        ([*two_prompts(), sampled("p", "sft")], "'p', policy sft, sample 0 occurs twice"),
        ([*two_prompts(), sampled("p", "sft", 1, gold_total=None)], "the first sample has"),
        (two_prompts()[:2], "at least 2 prompts"),
    ],
)
def test_samples_that_cannot_be_paired_are_refused(broken, message):
    with pytest.raises(DataError, match=message):
        compare(broken)


@pytest.mark.parametrize(
    "change",
    [
        {"reward_score": float("nan")},
        {"kl_nats": float("inf")},
        {"gold_total": float("nan")},
        {"gold_components": {"finished": float("nan")}},
    ],
)
def test_a_score_that_is_not_finite_is_refused_by_name(change):
    samples = [*two_prompts(), sampled("q", "ppo", 1, **change)]
    with pytest.raises(NumericsError, match=rf"{next(iter(change))}.*'q', policy ppo, sample 1"):
        check_samples(samples)
