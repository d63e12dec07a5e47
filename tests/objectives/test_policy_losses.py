import math

import pytest
import torch
from gradient_check import assert_gradient
from plain_reference import kl, policy_loss

from alignment.objectives.policy_losses import ppo_policy_loss

MASK = torch.tensor([[0, 1, 1, 0, 1, 1], [0, 0, 1, 1, 1, 0]]) == 1


def grid(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, 6, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("clips", [(0.2, 0.2), (0.2, 0.28), (0.1, 0.5)])
@pytest.mark.parametrize("dual_clip", [None, 1.3])
def test_equals_the_plain_reference(clips, dual_clip):
    low, high = clips
    new, old, advantages = grid(0, 0.5) - 1, grid(1, 0.5) - 1, grid(2)
    loss = ppo_policy_loss(
        new, old, advantages, MASK, clip_low=low, clip_high=high, dual_clip=dual_clip
    )
    for b, t in MASK.nonzero().tolist():
        n, o, a = (float(x[b, t]) for x in (new, old, advantages))
        expected = policy_loss(n, o, a, clip_low=low, clip_high=high, dual_clip=dual_clip)
        assert float(loss.losses[b, t]) == pytest.approx(expected, rel=1e-12)
        assert float(loss.approximate_kl[b, t]) == pytest.approx(kl(o, n, "k3"), abs=1e-12)
        assert float(loss.ratio[b, t]) == pytest.approx(math.exp(n - o), rel=1e-12)
        unclipped = -math.exp(n - o) * a
        assert bool(loss.is_clipped[b, t]) == (abs(expected - unclipped) > 1e-12)
    for per_token in (loss.losses, loss.is_clipped, loss.ratio, loss.approximate_kl):
        assert (per_token[~MASK] == 0).all()


def one_token(log_ratio, advantage, **options):
    new = torch.tensor([[log_ratio]], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    mask = torch.ones(1, 1, dtype=torch.bool)
    loss = ppo_policy_loss(
        new, zero, zero + advantage, mask, clip_low=0.2, clip_high=0.28, **options
    )
    loss.losses.sum().backward()
    return float(loss.losses), float(new.grad), bool(loss.is_clipped)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.25, 2.0, -2.5, -2.5),  # within the upper clip 0.28: still learns
        (1.5, 2.0, -2.56, 0.0),  # likelier than wanted: stopped at 1.28
        (0.5, 2.0, -1.0, -1.0),  # a good token became unlikely: always learns
        (0.5, -2.0, 1.6, 0.0),  # a bad token is unlikely enough: stopped at 0.8
        (0.9, -2.0, 1.8, 1.8),
        (1.5, -2.0, 3.0, 3.0),  # a bad token became likelier: always learns
    ],
)
def test_clipping_stops_the_gradient_only_where_the_update_has_gone_far_enough(
    ratio, advantage, loss, gradient
):
    actual_loss, actual_gradient, is_clipped = one_token(math.log(ratio), advantage)
    assert actual_loss == pytest.approx(loss, rel=1e-12)
    assert actual_gradient == pytest.approx(gradient, rel=1e-12)
    assert is_clipped == (gradient == 0.0)


def test_dual_clip_bounds_the_loss_of_bad_tokens_only():
    assert one_token(math.log(10.0), -2.0) == (pytest.approx(20.0), pytest.approx(20.0), False)
    assert one_token(math.log(10.0), -2.0, dual_clip=3.0) == (pytest.approx(6.0), 0.0, True)
    assert one_token(math.log(10.0), 2.0, dual_clip=3.0) == (pytest.approx(-2.56), 0.0, True)


def test_first_update_is_exactly_on_policy():
    """Same weights: ratio exactly 1, nothing clipped, gradient that of -A log p."""
    new = grid(0).float().requires_grad_(True)
    advantages = grid(1).float()
    loss = ppo_policy_loss(new, new.detach(), advantages, MASK, clip_low=0.2, clip_high=0.2)
    loss.losses.sum().backward()
    assert (loss.ratio[MASK] == 1.0).all()
    assert not loss.is_clipped.any()
    assert (loss.approximate_kl == 0).all()
    torch.testing.assert_close(new.grad, torch.where(MASK, -advantages, 0.0), rtol=0, atol=0)


@pytest.mark.parametrize("log_ratio", [100.0, -100.0, 1e4])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_extreme_ratios_give_no_nan(log_ratio, advantage):
    loss, gradient, _ = one_token(log_ratio, advantage)
    assert math.isfinite(loss)
    assert math.isfinite(gradient)


@pytest.mark.parametrize("dual_clip", [None, 1.3])
def test_gradient(dual_clip):
    old, advantages, weights = grid(1, 0.5), grid(2), grid(3)

    def total(new):
        losses = ppo_policy_loss(
            new, old, advantages, MASK, clip_low=0.2, clip_high=0.28, dual_clip=dual_clip
        ).losses
        return (weights * losses).sum()

    assert_gradient(total, grid(0, 0.5))
    assert torch.autograd.gradcheck(total, grid(0, 0.5).requires_grad_(True))


def test_nan_outside_the_mask_changes_neither_loss_nor_gradient():
    new = grid(0).masked_fill(~MASK, math.nan).requires_grad_(True)
    old, advantages = (grid(s).masked_fill(~MASK, math.nan) for s in (1, 2))
    loss = ppo_policy_loss(new, old, advantages, MASK, clip_low=0.2, clip_high=0.2)
    loss.losses.sum().backward()
    assert torch.isfinite(loss.losses).all()
    assert torch.isfinite(loss.approximate_kl).all()
    assert torch.isfinite(new.grad).all()
