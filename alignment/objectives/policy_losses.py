"""The clipped surrogate objective of PPO."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from alignment.objectives.kl import kl_estimate

LOG_RATIO_LIMIT = 20.0
"""Log-ratios beyond this are clamped: exp overflows float32 at 88, and inf * 0 gives nan
gradients where the clip should have given none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """Per response token, all [B, T] and 0 (False) elsewhere; only `losses` has a gradient.

    losses: to be minimised. is_clipped: bool, the clip decided the loss and stopped the gradient.
    ratio: new over old probability. approximate_kl: k3 estimate of KL(old || new), nats.
    """

    losses: Tensor
    is_clipped: Tensor
    ratio: Tensor
    approximate_kl: Tensor


def ppo_policy_loss(
    new_logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """`-min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)` of each token.

    `dual_clip` c > 1 bounds the loss of tokens with A < 0 by `-c * A`; absent, it is unbounded.

    Sources: Schulman et al. 2017, arXiv 1707.06347, eq. 7; asymmetric clip: Yu et al. 2025,
    arXiv 2503.14476, section 3.1; dual clip: Ye et al. 2020, arXiv 1912.09729.
    """
    log_ratio = torch.where(response_mask, new_logprobs - old_logprobs, 0.0)
    advantages = torch.where(response_mask, advantages, 0.0)
    ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    unclipped = -ratio * advantages
    clipped = -ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages
    losses = torch.maximum(unclipped, clipped)
    is_clipped = clipped > unclipped
    if dual_clip is not None:
        bound = torch.where(advantages < 0, -dual_clip * advantages, torch.inf)
        is_clipped = is_clipped | (losses > bound)
        losses = torch.minimum(losses, bound)
    with torch.no_grad():
        approximate_kl = kl_estimate(torch.zeros_like(log_ratio), log_ratio, estimator="k3")
    return PolicyLoss(
        losses=losses,
        is_clipped=is_clipped,
        ratio=torch.where(response_mask, ratio.detach(), 0.0),
        approximate_kl=approximate_kl,
    )
