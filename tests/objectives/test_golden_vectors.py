"""Worked numbers: a whole PPO batch to 6 digits, and published cases of other test suites.

The whole-batch numbers were computed by hand-written plain Python (docs/numerics.md, section 4),
KL coefficient 0.1, discount 1, lambda 0.95, clip 0.2.
"""

import pytest
import torch

from alignment.objectives.advantages import generalized_advantages
from alignment.objectives.aggregation import aggregation_denominator, aggregation_numerator
from alignment.objectives.kl import adaptive_kl_coefficient, kl_estimate, kl_shaped_rewards
from alignment.objectives.masking import (
    masked_mean,
    masked_sum,
    masked_variance,
    masked_whiten,
)
from alignment.objectives.policy_losses import ppo_policy_loss
from alignment.objectives.preference_losses import bradley_terry_loss, plackett_luce_loss
from alignment.objectives.sft_losses import perplexity, sft_loss
from alignment.objectives.value_losses import ppo_value_loss

SIX_DIGITS = 5.1e-7


def close(actual, expected, atol=SIX_DIGITS):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def shaped(golden):
    return kl_shaped_rewards(
        golden.scores,
        golden.policy,
        golden.reference,
        golden.mask,
        coefficient=0.1,
        estimator="k1",
    )


def estimated(golden):
    return generalized_advantages(
        shaped(golden), golden.values, golden.mask, discount=1.0, gae_lambda=0.95
    )


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", [0.1, 0.2, -0.5, 0.1, 0.2, -0.2]),
        ("k2", [0.005, 0.02, 0.125, 0.005, 0.02, 0.02]),
        ("k3", [0.004837, 0.018731, 0.148721, 0.004837, 0.018731, 0.021403]),
    ],
)
def test_kl_estimators(golden, estimator, expected):
    kl = kl_estimate(golden.policy, golden.reference, estimator=estimator)
    close(kl[golden.mask], expected)


def test_rewards(golden):
    close(shaped(golden), [[-0.01, -0.02, 0.05, 0.99], [-0.02, -0.48, 0, 0]])


def test_advantages_and_returns(golden):
    advantages, returns = estimated(golden)
    close(advantages, [[0.702464, 0.855225, 0.6055, 0.69], [-0.481, -0.38, 0, 0]])
    close(returns, [[0.902464, 0.955225, 1.0055, 0.99], [-0.481, -0.48, 0, 0]])


def test_moments_of_the_advantages(golden):
    advantages, _ = estimated(golden)
    close(masked_mean(advantages, golden.mask), 0.332031)
    close(masked_variance(advantages, golden.mask, unbiased=False), 0.296981)
    close(masked_variance(advantages, golden.mask, unbiased=True), 0.356377)


@pytest.mark.parametrize(
    ("unbiased", "expected"),
    [
        (True, [[0.620517, 0.876410, 0.458092, 0.599639], [-1.361922, -1.192735, 0, 0]]),
        (False, [[0.679742, 0.960059, 0.501814, 0.656871], [-1.491911, -1.306576, 0, 0]]),
    ],
)
def test_whitened_advantages(golden, unbiased, expected):
    advantages, _ = estimated(golden)
    close(masked_whiten(advantages, golden.mask, unbiased=unbiased), expected)


def test_whitened_rewards_keep_their_mean(golden):
    whitened = masked_whiten(shaped(golden), golden.mask, shift_mean=False)
    close(
        whitened[golden.mask],
        [-0.111342, -0.132010, 0.012663, 1.955418, -0.132010, -1.082719],
    )


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token-mean", -0.027556),
        ("seq-mean-token-mean", 0.268847),
        ("seq-mean-token-sum", -0.082667),
    ],
)
def test_policy_loss(golden, aggregation, expected):
    advantages = masked_whiten(estimated(golden)[0], golden.mask)
    losses = ppo_policy_loss(
        golden.new, golden.policy, advantages, golden.mask, clip_low=0.2, clip_high=0.2
    ).losses
    numerator = aggregation_numerator(losses, golden.mask, aggregation)
    close(numerator / aggregation_denominator(golden.mask, aggregation), expected)


def test_value_loss(golden):
    _, returns = estimated(golden)
    losses = ppo_value_loss(golden.new_values, golden.values, returns, golden.mask, clip=0.2).losses
    close(masked_mean(losses, golden.mask), 0.151493)


def test_adaptive_kl_coefficient():
    coefficient = adaptive_kl_coefficient(
        0.15, kl_nats=9.0, target_nats=6.0, num_sequences=512, horizon_sequences=10000.0
    )
    assert coefficient == pytest.approx(0.151536, abs=SIX_DIGITS)


def test_whitening_example_of_the_implementation_details_blog():
    values = torch.arange(1.2, 2.05, 0.1, dtype=torch.float64).reshape(3, 3)
    everything = torch.ones(3, 3, dtype=torch.bool)
    for unbiased, first, last in [(True, 0.1394, 3.0606), (False, 0.0508, 3.1492)]:
        whitened = masked_whiten(values, everything, shift_mean=False, unbiased=unbiased)
        close(whitened[0, 0], first, atol=5e-5)
        close(whitened[2, 2], last, atol=5e-5)


def test_accumulated_gradient_is_a_mean_over_tokens_not_of_means():
    """100 tokens at loss 2 and 900 at 0.5 in two microbatches: 0.65, not 1.25."""
    losses = torch.full((2, 900), 0.5)
    losses[0] = 2.0
    mask = torch.ones(2, 900, dtype=torch.bool)
    mask[0, 100:] = False
    denominator = aggregation_denominator(mask, "token-mean")
    parts = [
        aggregation_numerator(losses[row : row + 1], mask[row : row + 1], "token-mean")
        for row in (0, 1)
    ]
    close(sum(parts) / denominator, 0.65)


def test_published_gae_cases(reference_json):
    cases = reference_json("gae_cases.json")
    assert len(cases) == 3
    for case in cases:
        assert case["bootstrap_value"] == 0  # ours is always: the value after the end is 0
        advantages, returns = generalized_advantages(
            torch.tensor([case["rewards"]], dtype=torch.float64),
            torch.tensor([case["values"]], dtype=torch.float64),
            torch.ones(1, len(case["values"]), dtype=torch.bool),
            discount=case["gamma"],
            gae_lambda=case["lambda"],
        )
        close(advantages[0], case["advantages_before_whitening"], atol=1e-9)
        close(returns[0], case["returns"], atol=1e-9)


def test_published_rewards_with_kl(reference_json):
    case = reference_json("loss_cases.json")["reward_with_kl"]
    policy = torch.tensor(case["logprobs"], dtype=torch.float64)
    rewards = kl_shaped_rewards(
        torch.tensor(case["scores"], dtype=torch.float64),
        policy,
        torch.tensor(case["ref_logprobs"], dtype=torch.float64),
        torch.ones_like(policy, dtype=torch.bool),
        coefficient=case["kl_coeff"],
    )
    close(rewards, case["rewards"], atol=1e-12)


def test_ranking_loss_cases(reference_json):
    cases = reference_json("loss_cases.json")["ranking_loss"]
    assert len(cases) == 2
    for case in cases:
        scores = torch.tensor(case["rewards_best_first"], dtype=torch.float64)
        better, worse = torch.triu_indices(len(scores), len(scores), offset=1)
        close(
            bradley_terry_loss(scores[better] - scores[worse]).mean(),
            case["mean_pairwise_nll"],
            atol=1e-8,
        )
        listwise = plackett_luce_loss(scores[None], torch.arange(len(scores))[None])
        close(listwise[0], case["plackett_luce_nll"], atol=1e-8)


def test_kl_estimator_cases(reference_json):
    for case in reference_json("loss_cases.json")["kl_estimators"]:
        policy = torch.tensor(case["logprobs"], dtype=torch.float64)
        reference = torch.tensor(case["ref_logprobs"], dtype=torch.float64)
        for estimator in ("k1", "k2", "k3"):
            mean = kl_estimate(policy, reference, estimator=estimator).mean()
            close(mean, case[f"{estimator}_mean"], atol=1e-8)


def test_ppo_clip_cases(reference_json):
    for case in reference_json("loss_cases.json")["ppo_clip"]:
        new, old, advantages = (
            torch.tensor([case[key]], dtype=torch.float64)
            for key in ("new_logprobs", "old_logprobs", "advantages")
        )
        mask = torch.ones_like(new, dtype=torch.bool)
        loss = ppo_policy_loss(
            new, old, advantages, mask, clip_low=case["eps"], clip_high=case["eps"]
        )
        close(masked_mean(loss.losses, mask), case["loss_mean"], atol=1e-8)
        close(masked_mean(loss.is_clipped.double(), mask), case["clip_fraction"], atol=1e-8)


def test_perplexity_cases(reference_json):
    uniform, sampled = reference_json("loss_cases.json")["perplexity"]
    loss = -torch.log_softmax(torch.zeros(uniform["V"], dtype=torch.float64), 0)[0]
    assert perplexity(float(loss)) == pytest.approx(uniform["perplexity"], rel=1e-9)
    logprobs = torch.tensor([sampled["token_logprobs"]], dtype=torch.float64)
    mask = torch.ones_like(logprobs, dtype=torch.bool)
    mean = masked_sum(sft_loss(logprobs, mask), mask) / mask.sum()
    assert perplexity(float(mean)) == pytest.approx(sampled["perplexity"], abs=5e-8)
