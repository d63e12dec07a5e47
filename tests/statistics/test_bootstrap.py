import itertools
import math

import numpy as np
import pytest

from alignment.errors import DataError
from alignment.statistics.bootstrap import bootstrap_difference, bootstrap_mean, wilson_interval


def test_value_is_the_mean_and_the_sizes_are_counted():
    interval = bootstrap_mean([1.0, 2.0, 6.0], ["a", "a", "b"], seed=0)
    assert (interval.value, interval.n, interval.clusters) == (3.0, 3, 2)
    assert interval.low <= interval.value <= interval.high


def test_percentiles_are_those_of_all_resamples_enumerated():
    """Three clusters of unequal size have 27 resamples: their exact quantiles are known."""
    values, clusters = [1.0, 2.0, 4.0, 10.0], [0, 0, 1, 2]
    members = [[1.0, 2.0], [4.0], [10.0]]
    means = [
        np.mean([v for c in drawn for v in members[c]])
        for drawn in itertools.product(range(3), repeat=3)
    ]
    interval = bootstrap_mean(values, clusters, seed=1, resamples=20_000, confidence=0.6)
    low, high = np.quantile(means, [0.2, 0.8], method="inverted_cdf")
    assert interval.low == pytest.approx(low, abs=1e-9)
    assert interval.high == pytest.approx(high, abs=1e-9)


def test_the_same_seed_gives_the_same_interval_in_whatever_order_the_clusters_come():
    values, clusters = np.arange(12.0) ** 2, list("abcdefabcdef")
    one = bootstrap_mean(values, clusters, seed=3)
    assert one == bootstrap_mean(values, clusters, seed=3)
    assert one == bootstrap_mean(values[::-1], clusters[::-1], seed=3)
    assert one != bootstrap_mean(values, clusters, seed=4)


def test_values_of_one_prompt_that_agree_widen_the_interval():
    """Eight copies of each prompt's value are no more evidence than one."""
    means = np.random.default_rng(0).normal(size=40)
    once = bootstrap_mean(means, seed=0)
    by_prompt = bootstrap_mean(np.repeat(means, 8), np.repeat(np.arange(40), 8).tolist(), seed=0)
    by_value = bootstrap_mean(np.repeat(means, 8), seed=0)
    width = once.high - once.low
    assert by_prompt.high - by_prompt.low == pytest.approx(width, rel=0.1)
    assert by_value.high - by_value.low == pytest.approx(width / math.sqrt(8), rel=0.1)


def test_interval_holds_the_truth_about_as_often_as_it_says():
    """40 prompts x 4 samples with prompt effects: 90% intervals, 200 experiments."""
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        effects = np.repeat(generator.normal(size=40), 4) + generator.normal(size=160)
        prompts = np.repeat(np.arange(40), 4).tolist()
        interval = bootstrap_mean(effects, prompts, seed=seed, resamples=300, confidence=0.9)
        hits += interval.low <= 0.0 <= interval.high
    assert 0.83 <= hits / 200 <= 0.95


def test_paired_difference_cancels_what_prompts_give_to_both_sides():
    generator = np.random.default_rng(0)
    effects = 10 * generator.normal(size=30)
    prompts = [f"p{i}" for i in range(30)]
    treated = np.concatenate([effects + 1.0, effects + 1.2])  # two samples a prompt
    paired = bootstrap_difference(treated, prompts * 2, effects, prompts, seed=0)
    assert paired.value == pytest.approx(1.1)
    assert (paired.n, paired.clusters) == (60, 30)
    assert paired.low == pytest.approx(1.1)
    assert paired.high == pytest.approx(1.1)
    shuffled = bootstrap_difference(treated, prompts * 2, effects, prompts[::-1], seed=0)
    assert shuffled.high - shuffled.low > 4.0


def test_difference_of_equally_many_values_is_the_mean_of_differences():
    generator = np.random.default_rng(1)
    treated, baseline = generator.normal(size=(2, 24))
    prompts = np.repeat(np.arange(8), 3).tolist()
    one = bootstrap_difference(treated, prompts, baseline, prompts, seed=5)
    two = bootstrap_mean(treated - baseline, prompts, seed=5)
    assert (one.low, one.value, one.high) == pytest.approx((two.low, two.value, two.high))
    assert one.value != pytest.approx(0.0, abs=1e-3)


def test_difference_refuses_a_prompt_that_one_side_lacks():
    with pytest.raises(DataError, match="2 clusters are on one side only \\(first: 'b'\\)"):
        bootstrap_difference([1.0, 2.0], ["a", "b"], [1.0, 2.0], ["a", "c"], seed=0)


@pytest.mark.parametrize(
    ("values", "clusters", "message"),
    [
        ([], [], "shape \\(0,\\)"),
        ([1.0, 2.0], ["a"], "1 cluster names"),
        ([[1.0, 2.0]], ["a"], "shape \\(1, 2\\)"),
        ([1.0, math.nan], ["a", "b"], "value 1 is not finite"),
        ([1.0, 2.0], ["a", "a"], "2 values in 1 cluster"),
    ],
)
def test_values_without_an_interval_are_refused(values, clusters, message):
    with pytest.raises(DataError, match=message):
        bootstrap_mean(values, clusters, seed=0)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_equals_published_ones(successes, n, low, high):
    interval = wilson_interval(successes, n)
    assert interval.value == pytest.approx(successes / n)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (3, 2), (-1, 2)])
def test_wilson_interval_refuses_what_is_no_share(successes, n):
    with pytest.raises(DataError):
        wilson_interval(successes, n)
