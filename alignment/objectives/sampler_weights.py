"""Importance weights for tokens drawn by a sampler whose probabilities are not the trainer's."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from alignment.objectives.policy_losses import LOG_RATIO_LIMIT


def sampler_weights(
    old_logprobs: Float[Tensor, "B T"],
    sampling_logprobs: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    *,
    kind: Literal["truncate", "mask"],
    high: float,
    low: float | None = None,
) -> Float[Tensor, "B T"]:
    """Weight w = p_trainer / p_sampler of each response token, bounded; 0 elsewhere, no gradient.

    `truncate`: min(w, high). `mask`: w where low <= w <= high, else 0. A weight is not negative,
    so multiplying an advantage by it multiplies the clipped loss.

    Sources: truncated: Ionides 2008, J. Comput. Graph. Stat. 17, 295-311, applied to rollouts
    by Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
    training"; masked: Ling team 2025, arXiv 2510.18855 (IcePop).
    """
    log_ratio = torch.where(response_mask, old_logprobs - sampling_logprobs, 0.0).detach()
    weights = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    if kind == "truncate":
        weights = weights.clamp(max=high)
    elif kind == "mask":
        is_kept = (weights >= (low or 0.0)) & (weights <= high)
        weights = torch.where(is_kept, weights, 0.0)
    else:
        raise ValueError(f"kind {kind!r} is not known; accepted: truncate, mask")
    return torch.where(response_mask, weights, 0.0)
