"""One loss and one gradient, however the same sequences are laid out and cut.

The same four sequences (prompt, response, one with a gap of tool output) are laid out right-
padded, left-padded and packed into one row, and cut into microbatches in several ways. Hidden
states are computed per sequence, so the layouts differ in nothing but layout.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from alignment.objectives.advantages import generalized_advantages
from alignment.objectives.aggregation import (
    aggregation_denominator,
    aggregation_numerator,
    token_weights,
)
from alignment.objectives.kl import kl_shaped_rewards
from alignment.objectives.logprobs import gather_before, scatter_to_grid, token_logprobs
from alignment.objectives.masking import masked_whiten
from alignment.objectives.policy_losses import ppo_policy_loss
from alignment.objectives.sft_losses import sft_loss
from alignment.objectives.value_losses import ppo_value_loss

AGGREGATIONS = ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"]
HIDDEN, VOCABULARY = 5, 13


@dataclass
class Sequence:
    tokens: Tensor
    hidden: Tensor
    mask: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    old_values: Tensor
    returns: Tensor


def sequences():
    generator = torch.Generator().manual_seed(0)
    masks = [[0, 0, 1, 1, 1, 1, 1, 1], [0, 1], [0, 0, 1, 0, 0, 1, 1], [0, 0, 0, 1, 1]]

    def numbers(length):
        return torch.randn(length, dtype=torch.float64, generator=generator)

    made = []
    for mask in masks:
        length = len(mask)
        tokens = torch.randint(VOCABULARY, (length,), generator=generator)
        hidden = torch.randn(length, HIDDEN, dtype=torch.float64, generator=generator)
        grids = [numbers(length) for _ in range(4)]
        grids[0] -= 2.5  # about the size of log(1 / VOCABULARY): ratios near 1
        made.append(Sequence(tokens, hidden, torch.tensor(mask) == 1, *grids))
    return made


def lay_out(parts, side):
    """Rows of equal length, padded on one side; pads hold a value that would be noticed."""
    width = max(len(part) for part in parts)
    rows = []
    for part in parts:
        pad = part.new_full(
            (width - len(part), *part.shape[1:]), 1 if part.dtype.is_floating_point else 0
        )
        rows.append(torch.cat([pad, part] if side == "left" else [part, pad]))
    return torch.stack(rows)


def grids(chosen, side):
    """Every field of the sequences on one grid: padded rows, or one packed row."""
    names = Sequence.__dataclass_fields__
    columns = {name: [getattr(s, name) for s in chosen] for name in names}
    if side == "packed":
        return {name: torch.cat(parts)[None] for name, parts in columns.items()}
    return {name: lay_out(parts, side) for name, parts in columns.items()}


def parameters():
    generator = torch.Generator().manual_seed(1)
    head = torch.randn(VOCABULARY, HIDDEN, dtype=torch.float64, generator=generator)
    value = torch.randn(HIDDEN, dtype=torch.float64, generator=generator)
    return head.requires_grad_(True), value.requires_grad_(True)


def token_losses(batch, head, value, chunk_tokens):
    """Policy, value and cross-entropy losses added, so that each would be missed."""
    mask = batch["mask"]
    before = gather_before(batch["hidden"], mask)
    logprobs, _ = token_logprobs(
        before, lambda h: h @ head.T, batch["tokens"][mask], chunk_tokens=chunk_tokens
    )
    new_logprobs = scatter_to_grid(logprobs, mask)
    new_values = scatter_to_grid(before @ value, mask)
    policy = ppo_policy_loss(
        new_logprobs,
        batch["old_logprobs"],
        batch["advantages"],
        mask,
        clip_low=0.2,
        clip_high=0.3,
    )
    critic = ppo_value_loss(new_values, batch["old_values"], batch["returns"], mask, clip=0.2)
    return policy.losses + 0.7 * critic.losses + 0.3 * sft_loss(new_logprobs, mask)


def gradient_of(side, cuts, aggregation, chunk_tokens=100):
    """Loss and gradient of one optimiser step of all sequences, cut into microbatches."""
    everything = sequences()
    head, value = parameters()
    step_mask = grids(everything, "right")["mask"]
    denominator = aggregation_denominator(step_mask, aggregation)
    loss = 0.0
    for cut in cuts:
        chosen = [everything[i] for i in cut]
        batch = grids(chosen, side)
        losses = token_losses(batch, head, value, chunk_tokens)
        if side == "packed":  # weights belong to sequences: made before packing, packed along
            weights = [token_weights(s.mask[None], aggregation, dtype=losses.dtype) for s in chosen]
            numerator = (torch.cat(weights, 1) * losses).sum()
        else:
            numerator = aggregation_numerator(losses, batch["mask"], aggregation)
        (numerator / denominator).backward()
        loss += float(numerator) / denominator
    return loss, head.grad, value.grad


LAYOUTS = [
    ("right", [[0], [1], [2], [3]]),
    ("right", [[3, 1], [2, 0]]),
    ("left", [[0, 1, 2, 3]]),
    ("left", [[0], [1, 2, 3]]),
    ("packed", [[0, 1, 2, 3]]),
    ("packed", [[2, 0], [3, 1]]),
]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize(("side", "cuts"), LAYOUTS)
def test_loss_and_gradient_do_not_depend_on_the_layout(side, cuts, aggregation):
    loss, head, value = gradient_of("right", [[0, 1, 2, 3]], aggregation)
    again = gradient_of(side, cuts, aggregation, chunk_tokens=2)
    assert again[0] == pytest.approx(loss, rel=1e-12)
    assert head.abs().max() > 1e-3
    torch.testing.assert_close(again[1], head, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(again[2], value, rtol=1e-10, atol=1e-12)


def test_the_three_aggregations_differ_here():
    losses = {round(gradient_of("right", [[0, 1, 2, 3]], a)[0], 6) for a in AGGREGATIONS}
    assert len(losses) == 3


def test_experience_does_not_depend_on_the_padding_side():
    """Rewards, advantages, returns and whitening, all the way."""
    everything = sequences()
    outcomes = []
    for side in ("right", "left"):
        batch = grids(everything, side)
        mask = batch["mask"]
        rewards = kl_shaped_rewards(
            torch.tensor([1.0, -1.0, 0.5, 2.0], dtype=torch.float64),
            batch["old_logprobs"],
            batch["returns"],
            mask,
            coefficient=0.1,
            estimator="k3",
        )
        advantages, returns = generalized_advantages(
            rewards, batch["old_values"], mask, discount=0.99, gae_lambda=0.95
        )
        whitened = masked_whiten(advantages, mask)
        outcomes.append(torch.stack([x[mask] for x in (rewards, returns, whitened)]))
    torch.testing.assert_close(outcomes[0], outcomes[1], rtol=1e-12, atol=1e-12)
