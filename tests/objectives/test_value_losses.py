import math

import pytest
import torch
from gradient_check import assert_gradient
from plain_reference import value_loss

from alignment.errors import DataError
from alignment.objectives.value_losses import explained_variance, ppo_value_loss

MASK = torch.tensor([[0, 1, 1, 0, 1, 1], [0, 0, 1, 1, 1, 0]]) == 1


def grid(seed):
    return torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("clip", [None, 0.2, 0.7])
def test_equals_the_plain_reference(clip):
    new, old, returns = grid(0), grid(1), grid(2)
    loss = ppo_value_loss(new, old, returns, MASK, clip=clip)
    for b, t in MASK.nonzero().tolist():
        n, o, g = (float(x[b, t]) for x in (new, old, returns))
        expected = value_loss(n, o, g, clip=clip)
        assert float(loss.losses[b, t]) == pytest.approx(expected, rel=1e-12)
        assert bool(loss.is_clipped[b, t]) == (expected > value_loss(n, o, g, clip=None) + 1e-12)
    assert (loss.losses[~MASK] == 0).all()
    assert not loss.is_clipped[~MASK].any()


@pytest.mark.parametrize(
    ("new", "loss", "gradient"),
    [
        (0.1, 0.405, -0.9),  # near the old value 0: plain regression towards 1
        (0.6, 0.32, 0.0),  # moved further than 0.2 towards the return: held at 0.2, no gradient
        (-0.6, 1.28, -1.6),  # moved away from the return: always learns
        (3.0, 2.0, 2.0),  # far beyond: the plain error is larger, learns
    ],
)
def test_a_value_that_moved_far_enough_towards_its_return_gets_no_gradient(new, loss, gradient):
    value = torch.tensor([[new]], dtype=torch.float64, requires_grad=True)
    old, returns = torch.zeros(1, 1), torch.ones(1, 1)
    mask = torch.ones(1, 1, dtype=torch.bool)
    losses = ppo_value_loss(value, old, returns, mask, clip=0.2).losses
    losses.sum().backward()
    assert float(losses) == pytest.approx(loss, rel=1e-6)
    assert float(value.grad) == pytest.approx(gradient, rel=1e-6)


@pytest.mark.parametrize("clip", [None, 0.2])
def test_gradient(clip):
    old, returns, weights = grid(1), grid(2), grid(3)

    def total(new):
        return (weights * ppo_value_loss(new, old, returns, MASK, clip=clip).losses).sum()

    assert_gradient(total, grid(0))
    assert torch.autograd.gradcheck(total, grid(0).requires_grad_(True))


@pytest.mark.parametrize("clip", [None, 0.2])
def test_nan_outside_the_mask_changes_neither_loss_nor_gradient(clip):
    new = grid(0).masked_fill(~MASK, math.nan).requires_grad_(True)
    old, returns = (grid(s).masked_fill(~MASK, math.nan) for s in (1, 2))
    loss = ppo_value_loss(new, old, returns, MASK, clip=clip)
    loss.losses.sum().backward()
    assert torch.isfinite(loss.losses).all()
    assert torch.isfinite(new.grad).all()


def test_explained_variance_of_perfect_constant_and_inverted_values():
    returns = grid(0)
    assert float(explained_variance(returns, returns, MASK)) == pytest.approx(1.0)
    assert float(explained_variance(returns + 5.0, returns, MASK)) == pytest.approx(1.0)
    assert float(explained_variance(torch.full_like(returns, 3.0), returns, MASK)) == pytest.approx(
        0.0, abs=1e-12
    )
    assert float(explained_variance(-returns, returns, MASK)) == pytest.approx(-3.0)


def test_explained_variance_needs_two_tokens():
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 0] = True
    with pytest.raises(DataError, match="needs at least 2"):
        explained_variance(grid(0), grid(1), mask)


def test_rounding_does_not_count_as_clipping():
    old = grid(1).float()
    new = old + 0.1 * torch.tanh(grid(0).float())
    loss = ppo_value_loss(new, old, grid(2).float(), MASK, clip=0.2)
    assert not loss.is_clipped.any()
