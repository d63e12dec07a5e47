"""The critic's regression on returns."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from alignment.objectives.masking import masked_variance


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueLoss:
    """Per response token, [B, T] and 0 (False) elsewhere; only `losses` has a gradient.

    losses: to be minimised. is_clipped: bool, the clip decided the loss and stopped the gradient.
    """

    losses: Tensor
    is_clipped: Tensor


def ppo_value_loss(
    new_values: Float[Tensor, "B T"],
    old_values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    *,
    clip: float | None,
) -> ValueLoss:
    """`0.5 * max((V - G)^2, (V_clipped - G)^2)` of each token, G the return.

    V_clipped keeps the new value within `clip` of the old one. Without `clip`, `0.5 * (V - G)^2`.

    Source: Schulman's baselines (ppo2); Huang et al. 2022, "The 37 Implementation Details of
    Proximal Policy Optimization", detail 9.
    """
    new_values = torch.where(response_mask, new_values, 0.0)
    old_values = torch.where(response_mask, old_values, 0.0)
    returns = torch.where(response_mask, returns, 0.0)
    unclipped = 0.5 * (new_values - returns).square()
    if clip is None:
        return ValueLoss(losses=unclipped, is_clipped=torch.zeros_like(response_mask))
    # Not old + clamp(new - old): its rounding would count values within the clip as clipped.
    clipped_values = torch.clamp(new_values, old_values - clip, old_values + clip)
    clipped = 0.5 * (clipped_values - returns).square()
    return ValueLoss(losses=torch.maximum(unclipped, clipped), is_clipped=clipped > unclipped)


def explained_variance(
    values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
) -> Float[Tensor, ""]:
    """`1 - Var(returns - values) / Var(returns)` over response tokens: 1 is a perfect critic.

    0 is no better than a constant; nan or -inf where the returns do not vary.

    Raises:
        DataError: fewer than two response tokens.
    """
    residual = masked_variance(returns - values, response_mask)
    return 1.0 - residual / masked_variance(returns, response_mask)
