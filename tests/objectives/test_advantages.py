import math
from functools import partial

import pytest
import torch
from gradient_check import assert_gradient
from plain_reference import gae

from alignment.errors import DataError
from alignment.objectives.advantages import (
    generalized_advantages,
    group_relative_advantages,
    leave_one_out_advantages,
)

# Prompts, gaps and padding: nothing, a gap of two, left and right padding, one token, no token.
MASK = (
    torch.tensor(
        [
            [1, 1, 1, 1, 1, 1],
            [0, 1, 0, 0, 1, 1],
            [0, 0, 1, 1, 0, 0],
            [0, 0, 0, 0, 0, 1],
            [0, 0, 0, 0, 0, 0],
        ]
    )
    == 1
)


def grid(seed):
    return torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("discount", "gae_lambda"), [(1, 0.95), (0.9, 0.8), (0.99, 0), (1, 1)])
def test_equals_the_sum_of_discounted_errors_with_gaps_cut_out(discount, gae_lambda):
    rewards, values = grid(0), grid(1)
    advantages, returns = generalized_advantages(
        rewards, values, MASK, discount=discount, gae_lambda=gae_lambda
    )
    for b in range(5):
        expected_advantages, expected_returns = gae(
            rewards[b][MASK[b]].tolist(),
            values[b][MASK[b]].tolist(),
            discount=discount,
            gae_lambda=gae_lambda,
        )
        assert advantages[b][MASK[b]].tolist() == pytest.approx(expected_advantages, abs=1e-12)
        assert returns[b][MASK[b]].tolist() == pytest.approx(expected_returns, abs=1e-12)
    assert (advantages[~MASK] == 0).all()
    assert (returns[~MASK] == 0).all()


def test_gap_of_tool_output_is_no_step():
    mask = torch.tensor([[True, False, False, True]])
    rewards = torch.tensor([[0.0, 5.0, 5.0, 1.0]])
    values = torch.tensor([[0.5, 7.0, 7.0, 0.25]])
    advantages, _ = generalized_advantages(rewards, values, mask, discount=0.9, gae_lambda=0.5)
    # A_last = 1 - 0.25; A_first = 0.9 * 0.25 - 0.5 + 0.45 * A_last.
    torch.testing.assert_close(advantages, torch.tensor([[0.0625, 0.0, 0.0, 0.75]]))


def test_gap_may_count_as_steps_of_value_and_reward_0():
    mask = torch.tensor([[False, True, False, False, True, False]])
    rewards = torch.tensor([[9.0, 0.0, 5.0, 5.0, 1.0, 9.0]])
    values = torch.tensor([[9.0, 0.5, 7.0, 7.0, 0.25, 9.0]])
    advantages, returns = generalized_advantages(
        rewards, values, mask, discount=0.9, gae_lambda=0.5, gaps="count"
    )
    # A_last = 1 - 0.25; the gap's steps: 0.9 * 0.25 + 0.45 A_last = 0.5625, then 0.45 of that.
    first = -0.5 + 0.45 * 0.45 * 0.5625
    torch.testing.assert_close(advantages, torch.tensor([[0, first, 0, 0, 0.75, 0]]))
    torch.testing.assert_close(returns, torch.tensor([[0, first + 0.5, 0, 0, 1.0, 0]]))


def test_without_discount_and_lambda_1_the_return_is_what_is_still_to_come():
    rewards, values = grid(0), grid(1)
    _, returns = generalized_advantages(
        rewards, values, torch.ones(5, 6, dtype=torch.bool), discount=1.0, gae_lambda=1.0
    )
    torch.testing.assert_close(returns, rewards.flip(1).cumsum(1).flip(1), rtol=1e-12, atol=1e-12)


def test_padding_side_and_amount_do_not_matter():
    rewards, values = grid(0)[:, :3], grid(1)[:, :3]
    outcomes = []
    for left in (0, 1, 4):
        pad = (left, 4 - left)
        mask = torch.nn.functional.pad(torch.ones(5, 3, dtype=torch.bool), pad)
        advantages, returns = generalized_advantages(
            torch.nn.functional.pad(rewards, pad, value=9.0),
            torch.nn.functional.pad(values, pad, value=9.0),
            mask,
            discount=0.9,
            gae_lambda=0.9,
        )
        outcomes.append(torch.stack([advantages[:, left : left + 3], returns[:, left : left + 3]]))
    torch.testing.assert_close(outcomes[1], outcomes[0], rtol=0, atol=0)
    torch.testing.assert_close(outcomes[2], outcomes[0], rtol=0, atol=0)


def test_gradients_and_nan_outside_the_mask():
    weights, values = grid(2), grid(1)

    def total(rewards, values):
        advantages, returns = generalized_advantages(
            rewards, values, MASK, discount=0.9, gae_lambda=0.8
        )
        return (weights * advantages + weights.square() * returns).sum()

    assert_gradient(lambda rewards: total(rewards, values), grid(0))
    assert_gradient(lambda values: total(grid(0), values), values)
    dirty = values.masked_fill(~MASK, math.nan).requires_grad_(True)
    total(grid(0).masked_fill(~MASK, math.nan), dirty).backward()
    assert torch.isfinite(dirty.grad).all()


def test_leave_one_out_is_the_reward_minus_the_mean_of_the_others():
    rewards = torch.tensor([1.0, 5.0, 2.0, -3.0, 4.0])
    group = torch.tensor([7, 2, 7, 7, 2])
    expected = [1 - (2 - 3) / 2, 5 - 4, 2 - (1 - 3) / 2, -3 - (1 + 2) / 2, 4 - 5]
    torch.testing.assert_close(leave_one_out_advantages(rewards, group), torch.tensor(expected))


def test_group_relative_advantages_are_centred_and_scaled_by_the_deviation_of_n_minus_1():
    rewards = torch.tensor([1.0, 5.0, 2.0, -3.0, 4.0], dtype=torch.float64)
    group = torch.tensor([7, 2, 7, 7, 2])
    centred = torch.tensor([1.0, 0.5, 2.0, -3.0, -0.5], dtype=torch.float64)
    plain = group_relative_advantages(rewards, group, divide_by_deviation=False)
    torch.testing.assert_close(plain, centred)
    seven, two = (1 + 4 + 9) / 2, (0.25 + 0.25) / 1
    deviation = torch.tensor([seven, two, seven, seven, two], dtype=torch.float64).sqrt()
    scaled = group_relative_advantages(rewards, group, divide_by_deviation=True, eps=0.0)
    torch.testing.assert_close(scaled, centred / deviation)


def test_equal_rewards_of_a_group_give_no_advantage_and_no_nan():
    rewards, group = torch.full((4,), 0.3), torch.tensor([0, 0, 1, 1])
    for divide in (False, True):
        advantages = group_relative_advantages(rewards, group, divide_by_deviation=divide)
        assert advantages.abs().max() < 1e-6


@pytest.mark.parametrize(
    "advantages",
    [leave_one_out_advantages, partial(group_relative_advantages, divide_by_deviation=True)],
)
def test_a_response_with_nothing_to_compare_it_with_is_refused(advantages):
    with pytest.raises(DataError, match="group 5 has one response"):
        advantages(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 1, 5]))
