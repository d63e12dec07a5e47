"""From per-token losses to one number, exactly, however the batch is cut.

A loss is `numerator / denominator`. The denominator belongs to the whole minibatch of an
optimiser step, over all ranks, and is known before the first backward; numerators of
microbatches simply add up. A mean of microbatch means would weigh tokens of short microbatches
more, which can turn the sign of a reported loss.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from alignment.errors import DataError
from alignment.objectives.masking import masked_sum

Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"]
"""`token-mean`: every token weighs the same. `seq-mean-token-mean`: mean over each sequence's
tokens, then over sequences. `seq-mean-token-sum`: sum over each sequence's tokens, then mean
over sequences. Sequences without a response token do not count."""


def token_weights(
    response_mask: Bool[Tensor, "B T"],
    aggregation: Aggregation,
    *,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "B T"]:
    """How much each token's loss counts in the numerator; 0 outside the mask.

    Depends on the token's own sequence only, so rows may be cut, sorted or packed afterwards
    as long as the weights travel with their tokens.
    """
    weights = response_mask.to(dtype)
    if aggregation == "seq-mean-token-mean":
        return weights / response_mask.sum(1, keepdim=True).clamp(min=1)
    if aggregation in ("token-mean", "seq-mean-token-sum"):
        return weights
    raise _unknown(aggregation)


def aggregation_denominator(response_mask: Bool[Tensor, "B T"], aggregation: Aggregation) -> float:
    """What the summed numerators of one optimiser step are divided by: tokens or sequences.

    `response_mask` holds every row of the step's minibatch, of all ranks and microbatches.

    Raises:
        DataError: the minibatch has no response token.
    """
    if aggregation == "token-mean":
        denominator = int(response_mask.sum())
    elif aggregation in ("seq-mean-token-mean", "seq-mean-token-sum"):
        denominator = int(response_mask.any(1).sum())
    else:
        raise _unknown(aggregation)
    if denominator == 0:
        raise DataError(
            f"the minibatch of {len(response_mask)} sequences has no response token to learn "
            "from: leave such sequences out when the batch is built"
        )
    return float(denominator)


def aggregation_numerator(
    token_losses: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    aggregation: Aggregation,
) -> Float[Tensor, ""]:
    """The (micro)batch's part of the loss, to be divided by `aggregation_denominator`."""
    weights = token_weights(response_mask, aggregation, dtype=token_losses.dtype)
    return masked_sum(weights * token_losses, response_mask)


def _unknown(aggregation: str) -> ValueError:
    return ValueError(
        f"aggregation {aggregation!r} is not known; accepted: token-mean, seq-mean-token-mean, "
        "seq-mean-token-sum"
    )
