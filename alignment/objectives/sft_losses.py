"""Supervised fine-tuning: cross-entropy of the demonstrated response tokens."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def sft_loss(
    new_logprobs: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Cross-entropy of each response token, `-log p(token)` in nats; 0 elsewhere.

    `new_logprobs` come from `token_logprobs` at temperature 1, which projects the vocabulary at
    the positions before response tokens only.
    """
    return torch.where(response_mask, -new_logprobs, 0.0)


def perplexity(mean_token_loss: float) -> float:
    """`exp` of the mean cross-entropy in nats: V for a uniform guess among V tokens."""
    return float(torch.tensor(mean_token_loss, dtype=torch.float64).exp())
