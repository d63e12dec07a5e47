"""From hidden states to log-probabilities on the [B, T] grid.

A language model's output at position t - 1 speaks about token t, and a value head's output
there is the value *before* token t is emitted. That shift is made here and nowhere else:
`gather_before` takes the outputs that speak about the response tokens, in row-major order of
the mask, and `scatter_to_grid` puts one number a token back to the token's own place.
Padding may stand on either side and masks may have gaps: position t - 1 is always the grid
neighbour, which after a gap is the last token of the gap.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from alignment.errors import DataError


def positions_before(
    response_mask: Bool[Tensor, "B T"],
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """Rows and columns of the positions whose outputs speak about the N response tokens.

    Raises:
        DataError: a row's token 0 is a response token; nothing precedes it.
    """
    rows, columns = response_mask.nonzero(as_tuple=True)
    if bool((columns == 0).any()):
        row = int(rows[columns == 0][0])
        raise DataError(
            f"response_mask is True at position 0 of row {row}, where no token precedes: "
            "a sequence needs at least one prompt token, e.g. a begin-of-sequence token"
        )
    return rows, columns - 1


def gather_before(
    outputs: Float[Tensor, "B T *features"], response_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "N *features"]:
    """Model outputs at the position before each of the N response tokens.

    Raises:
        DataError: a row's token 0 is a response token.
    """
    rows, columns = positions_before(response_mask)
    return outputs[rows, columns]


def scatter_to_grid(
    per_token: Float[Tensor, " N"], response_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """One number for each response token at the token's own place, 0 elsewhere."""
    grid = per_token.new_zeros(response_mask.shape)
    return grid.masked_scatter(response_mask, per_token)


def token_logprobs(
    hidden: Float[Tensor, "N H"],
    project: Callable[[Tensor], Tensor],
    targets: Int[Tensor, " N"],
    *,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
    min_chunks: int = 1,
    with_entropy_gradient: bool = False,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Log-probability of each target and entropy of its distribution, in nats, float32.

    `project` maps hidden states [n, H] to logits [n, V]; it is called once a chunk, and again
    in backward where the chunk is recomputed, so that at most `chunk_tokens` x V logits exist at
    a time. Under ZeRO-3 each call is a collective: ranks then pass the largest chunk count among
    them as `min_chunks`. Logits are taken to float32 before the division by `temperature`.
    Entropy is a metric without gradient unless `with_entropy_gradient`.

    Raises:
        ValueError: temperature or chunk_tokens is not positive.
    """
    if temperature <= 0 or chunk_tokens <= 0:
        raise ValueError(
            f"temperature {temperature} and chunk_tokens {chunk_tokens} must be positive"
        )

    def chunk_outputs(chunk_hidden: Tensor, chunk_targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = project(chunk_hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if temperature != 1.0:  # the largest tensor there is: no pass over it for nothing
            logits = logits / temperature
        distribution = F.log_softmax(logits, dim=-1)
        logprobs = distribution.gather(1, chunk_targets.unsqueeze(1)).squeeze(1)
        if with_entropy_gradient and torch.is_grad_enabled():
            return logprobs, -(distribution.exp() * distribution).sum(-1)
        with torch.no_grad():
            return logprobs, -distribution.exp().mul_(distribution).sum(-1)

    chunks = max(chunk_count(len(targets), chunk_tokens), min_chunks)
    recompute = torch.is_grad_enabled() and chunks > 1
    outputs = [
        checkpoint(chunk_outputs, *chunk, use_reentrant=False)
        if recompute
        else chunk_outputs(*chunk)
        for chunk in zip(hidden.tensor_split(chunks), targets.tensor_split(chunks), strict=True)
    ]
    logprobs, entropies = zip(*outputs, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def chunk_count(tokens: int, chunk_tokens: int) -> int:
    """How many chunks of at most `chunk_tokens` the tokens need; at least 1, even for none."""
    return max(1, -(-tokens // chunk_tokens))
