"""Generalised advantage estimation over response tokens."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def generalized_advantages(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    *,
    discount: float,
    gae_lambda: float,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Advantages and returns (= advantages + values, before any whitening); 0 outside the mask.

    values[b, t] is the value before token t is emitted; after the last response token it is 0.
    Gaps in the mask, such as tool output, are no steps: the next value and advantage are carried
    over them, so the result equals that of the sequence with the gap cut out. Each row is one
    sequence; do not pack.

    Source: Schulman et al. 2016, arXiv 1506.02438, eq. 16.
    """
    advantages = torch.zeros_like(values)
    next_advantage = torch.zeros_like(values[:, 0])
    next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        is_step = response_mask[:, t]
        delta = rewards[:, t] + discount * next_value - values[:, t]
        advantage = delta + discount * gae_lambda * next_advantage
        next_advantage = torch.where(is_step, advantage, next_advantage)
        next_value = torch.where(is_step, values[:, t], next_value)
        advantages[:, t] = torch.where(is_step, advantage, 0.0)
    returns = torch.where(response_mask, advantages + values, 0.0)
    return advantages, returns
