"""Kullback-Leibler estimates from log-probabilities of sampled tokens, in nats.

With tokens sampled from the policy and d = policy_logprobs - reference_logprobs, all
three estimators of Schulman 2020 ("Approximating KL Divergence", joschu.net/blog/kl-approx.html)
estimate KL(policy || reference). Positive d says that the policy likes the token better.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from alignment.errors import DataError

KLEstimator = Literal["k1", "k2", "k3"]
"""`k1` = d: unbiased, may be negative. `k2` = d^2 / 2: biased, never negative.
`k3` = exp(-d) - 1 + d: unbiased, never negative."""


def kl_estimate(
    policy_logprobs: Float[Tensor, "B T"],
    reference_logprobs: Float[Tensor, "B T"],
    *,
    estimator: KLEstimator,
    clamp_nats: float | None = None,
) -> Float[Tensor, "B T"]:
    """KL(policy || reference) of each token, not masked; tokens were sampled from the policy.

    For KL(old || new) in a PPO update the old policy is the one that sampled: pass it first.
    `clamp_nats` bounds each estimate either way.

    As a term of the loss an estimate is differentiated at fixed samples, which is not the
    gradient of what it estimates: in expectation k1 gives 0, k2 the gradient of the token's
    KL(policy || reference), k3 that of the token's KL(reference || policy).
    """
    difference = policy_logprobs - reference_logprobs
    if estimator == "k1":
        estimate = difference
    elif estimator == "k2":
        estimate = 0.5 * difference.square()
    elif estimator == "k3":
        estimate = torch.expm1(-difference) + difference
    else:
        raise ValueError(f"KL estimator {estimator!r} is not known; accepted: k1, k2, k3")
    return estimate if clamp_nats is None else estimate.clamp(-clamp_nats, clamp_nats)


def kl_shaped_rewards(
    scores: Float[Tensor, " B"],
    policy_logprobs: Float[Tensor, "B T"],
    reference_logprobs: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    *,
    coefficient: float,
    estimator: KLEstimator = "k1",
    clamp_nats: float | None = None,
) -> Float[Tensor, "B T"]:
    """Reward of each response token: `-coefficient * KL`, plus the score at the last; 0 elsewhere.

    Raises:
        DataError: a row has no response token to carry its score.

    Source: Ziegler et al. 2019, arXiv 1909.08593, eq. 2; Stiennon et al. 2020, arXiv 2009.01325.
    """
    is_empty = ~response_mask.any(1)
    if bool(is_empty.any()):
        row = int(is_empty.nonzero()[0])
        raise DataError(
            f"row {row} has no response token to carry its score: leave empty responses out"
        )
    kl = kl_estimate(
        torch.where(response_mask, policy_logprobs, 0.0),
        torch.where(response_mask, reference_logprobs, 0.0),
        estimator=estimator,
        clamp_nats=clamp_nats,
    )
    return -coefficient * kl + torch.where(
        is_last_response_token(response_mask), scores.unsqueeze(1), 0.0
    )


def is_last_response_token(response_mask: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """True at the last True entry of each row; nowhere in a row without one."""
    remaining = response_mask.long().flip(1).cumsum(1).flip(1)
    return response_mask & (remaining == 1)


def adaptive_kl_coefficient(
    coefficient: float,
    *,
    kl_nats: float,
    target_nats: float,
    num_sequences: int,
    horizon_sequences: float,
) -> float:
    """The next coefficient, moved towards the target KL per sequence.

    kl_nats is the KL *summed over a sequence's tokens*, mean over the `num_sequences` sequences
    seen since the last call. The proportional error is clipped to 0.2 either way.

    Source: Ziegler et al. 2019, arXiv 1909.08593, section 2.2.
    """
    error = min(max(kl_nats / target_nats - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + error * num_sequences / horizon_sequences)
