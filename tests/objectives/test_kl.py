import math

import pytest
import torch
from gradient_check import assert_gradient
from plain_reference import kl

from alignment.errors import DataError
from alignment.objectives.kl import (
    adaptive_kl_coefficient,
    is_last_response_token,
    kl_estimate,
    kl_shaped_rewards,
)

ESTIMATORS = ["k1", "k2", "k3"]
MASK = torch.tensor([[0, 1, 1, 0, 0, 1, 0], [0, 0, 1, 1, 1, 1, 1]]) == 1


def logprobs(seed):
    generator = torch.Generator().manual_seed(seed)
    return -3 * torch.rand(2, 7, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equals_the_plain_reference(estimator):
    policy, reference = logprobs(0), logprobs(1)
    estimate = kl_estimate(policy, reference, estimator=estimator)
    expected = torch.tensor(
        [kl(p, q, estimator) for p, q in zip(policy.view(-1), reference.view(-1), strict=True)],
        dtype=torch.float64,
    ).view(2, 7)
    torch.testing.assert_close(estimate, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_expectation_under_the_policy_is_the_divergence(estimator):
    """Over a whole vocabulary, not samples: sum_v p(v) k(v) = KL(p || q), and not KL(q || p)."""
    p = torch.log_softmax(logprobs(2)[:1] * 2, -1)
    q = torch.log_softmax(logprobs(3)[:1] * 2, -1)
    divergence = (p.exp() * (p - q)).sum()
    reverse = (q.exp() * (q - p)).sum()
    assert abs(float(divergence - reverse)) > 1e-2
    expectation = (p.exp() * kl_estimate(p, q, estimator=estimator)).sum()
    assert float(expectation) == pytest.approx(float(divergence), rel=1e-12)


def test_k2_and_k3_agree_where_policy_and_reference_are_close():
    policy, reference = logprobs(0), logprobs(0) + 1e-3
    k2 = kl_estimate(policy, reference, estimator="k2")
    k3 = kl_estimate(policy, reference, estimator="k3")
    torch.testing.assert_close(k2, k3, rtol=1e-3, atol=0)


def test_k3_keeps_its_digits_for_close_policies_in_float32():
    estimate = kl_estimate(torch.tensor([-1.0]), torch.tensor([-1.0 + 2**-12]), estimator="k3")
    assert float(estimate) == pytest.approx(2**-25, rel=1e-2)
    assert (kl_estimate(logprobs(0), logprobs(1), estimator="k3") >= 0).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradient(estimator):
    reference = logprobs(1)
    weights = logprobs(2)
    assert_gradient(
        lambda policy: (weights * kl_estimate(policy, reference, estimator=estimator)).sum(),
        logprobs(0),
    )


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_rewards_pay_for_kl_and_carry_the_score_on_the_last_token(estimator):
    scores = torch.tensor([2.0, -1.0], dtype=torch.float64)
    rewards = kl_shaped_rewards(
        scores, logprobs(0), logprobs(1), MASK, coefficient=0.3, estimator=estimator
    )
    expected = torch.zeros(2, 7, dtype=torch.float64)
    for b, t in MASK.nonzero().tolist():
        expected[b, t] = -0.3 * kl(float(logprobs(0)[b, t]), float(logprobs(1)[b, t]), estimator)
    expected[0, 5] += 2.0
    expected[1, 6] += -1.0
    torch.testing.assert_close(rewards, expected, rtol=1e-12, atol=1e-12)


def test_last_response_token_with_gaps_and_padding_on_either_side():
    mask = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 1]])
    expected = torch.tensor([[0, 0, 1, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    assert torch.equal(is_last_response_token(mask == 1), expected == 1)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_nan_outside_the_mask_changes_neither_rewards_nor_gradients(estimator):
    scores = torch.zeros(2, dtype=torch.float64)
    policy = logprobs(0).masked_fill(~MASK, math.nan).requires_grad_(True)
    reference = logprobs(1).masked_fill(~MASK, math.nan)
    rewards = kl_shaped_rewards(
        scores, policy, reference, MASK, coefficient=1.0, estimator=estimator
    )
    rewards.sum().backward()
    assert (rewards[~MASK] == 0).all()
    assert torch.isfinite(rewards).all()
    assert torch.isfinite(policy.grad).all()


def test_an_empty_response_is_refused_by_row():
    mask = MASK.clone()
    mask[1] = False
    with pytest.raises(DataError, match="row 1 has no response token"):
        kl_shaped_rewards(torch.zeros(2), logprobs(0), logprobs(1), mask, coefficient=0.1)


def test_an_unknown_estimator_names_the_known_ones():
    with pytest.raises(ValueError, match="accepted: k1, k2, k3"):
        kl_estimate(logprobs(0), logprobs(1), estimator="k4")


@pytest.mark.parametrize(
    ("kl_nats", "expected"),
    [
        (6.0, 0.15),  # on target: unchanged
        (6.6, 0.15 * (1 + 0.1 * 100 / 10000)),  # 10% above
        (600.0, 0.15 * (1 + 0.2 * 100 / 10000)),  # clipped above
        (0.0, 0.15 * (1 - 0.2 * 100 / 10000)),  # clipped below
    ],
)
def test_adaptive_coefficient_moves_towards_its_target(kl_nats, expected):
    coefficient = adaptive_kl_coefficient(
        0.15, kl_nats=kl_nats, target_nats=6.0, num_sequences=100, horizon_sequences=10000.0
    )
    assert coefficient == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("estimator", "exact"),
    [
        ("k1", lambda p, q: (p * 0).sum()),
        ("k2", lambda p, q: (p * (p.log() - q.log())).sum()),
        ("k3", lambda p, q: (q * (q.log() - p.log())).sum()),
    ],
)
def test_estimate_as_a_loss_has_the_gradient_of_another_divergence(estimator, exact):
    logits = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    policy = logits.log_softmax(0)
    estimates = kl_estimate(policy[None], reference.log()[None], estimator=estimator)[0]
    (expected_gradient,) = torch.autograd.grad((policy.detach().exp() * estimates).sum(), logits)
    divergence = exact(logits.softmax(0), reference)
    (gradient,) = torch.autograd.grad(divergence, logits)
    torch.testing.assert_close(expected_gradient, gradient)
    assert estimator == "k1" or gradient.abs().max() > 0.05


def test_clamp_bounds_each_estimate_either_way():
    policy, reference = torch.tensor([[-1.0, -9.0, -2.0]]), torch.tensor([[-8.0, -1.0, -2.5]])
    clamped = kl_estimate(policy, reference, estimator="k1", clamp_nats=3.0)
    assert clamped.tolist() == [[3.0, -3.0, 0.5]]
    rewards = kl_shaped_rewards(
        torch.tensor([0.0]), policy, reference, policy < 0, coefficient=1.0, clamp_nats=3.0
    )
    assert rewards.tolist() == [[-3.0, 3.0, -0.5]]
