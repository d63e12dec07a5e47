"""From hidden states to log-probabilities on the [B, T] grid.

A language model's output at position t - 1 speaks about token t, and a value head's output
there is the value *before* token t is emitted. That shift is made here and nowhere else:
`gather_before` takes the outputs that speak about the response tokens, in row-major order of
the mask, and `scatter_to_grid` puts one number a token back to the token's own place.
Padding may stand on either side and masks may have gaps: position t - 1 is always the grid
neighbour, which after a gap is the last token of the gap.
"""

from collections.abc import Callable
from typing import Any

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


KEPT_CHUNKS = 3
"""A batch of at most this many chunks keeps its logits; of more, each chunk is computed again."""

ROWS_ON_CPU = 8
"""Rows of logits that a CPU takes from their softmax to the gradient at a time, in its cache."""


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

    `project` maps hidden states [n, H] to logits [n, V] that nobody else needs, for backward writes
    their gradient in their place. It is called once a chunk of at most `chunk_tokens`, and where
    there are more than `KEPT_CHUNKS` again in backward, so that at most `KEPT_CHUNKS` chunks of
    logits exist at a time. Under ZeRO-3 each call is a collective: ranks then pass the largest
    chunk count among them as `min_chunks`. Logits are taken to float32 before the division by
    `temperature`. Entropy is a metric without gradient unless `with_entropy_gradient`.

    Raises:
        ValueError: temperature or chunk_tokens is not positive.
    """
    if temperature <= 0 or chunk_tokens <= 0:
        raise ValueError(
            f"temperature {temperature} and chunk_tokens {chunk_tokens} must be positive"
        )

    def chunk_outputs(chunk_hidden: Tensor, chunk_targets: Tensor) -> tuple[Tensor, Tensor]:
        logprobs, entropies = _LogprobAndEntropy.apply(
            project(chunk_hidden), chunk_targets, temperature
        )
        return logprobs, entropies if with_entropy_gradient else entropies.detach()

    chunks = max(chunk_count(len(targets), chunk_tokens), min_chunks)
    recompute = torch.is_grad_enabled() and chunks > KEPT_CHUNKS
    outputs = [
        checkpoint(chunk_outputs, *chunk, use_reentrant=False)
        if recompute
        else chunk_outputs(*chunk)
        for chunk in zip(hidden.tensor_split(chunks), targets.tensor_split(chunks), strict=True)
    ]
    logprobs, entropies = zip(*outputs, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


class _LogprobAndEntropy(torch.autograd.Function):
    """Of logits [n, V] and targets [n]: log-probabilities and entropies [n], at least float32.

    Autograd's own graph of this keeps the log-softmax beside the logits and passes over tensors of
    that size many times. Here only the logits are kept, and a few rows at a time go all the way to
    the gradient, which takes the logits' place: a second backward pass is refused.
    With z = logits / temperature and log p = log_softmax(z):

        d log p_a / d z_j = [j = a] - p_j        dH / d z_j = -p_j (log p_j + H)
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(logits, targets)
        ctx.temperature = temperature
        logprobs = torch.empty(len(targets), dtype=_wide(logits), device=logits.device)
        entropies = torch.empty_like(logprobs)
        for rows in _few_rows(logits):
            log_p = _log_softmax(logits[rows], temperature)
            logprobs[rows] = log_p.gather(1, targets[rows, None]).squeeze(1)
            entropies[rows] = -log_p.exp().mul_(log_p).sum(-1)
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    def backward(
        ctx: Any, for_logprobs: Tensor | None, for_entropies: Tensor | None
    ) -> tuple[Tensor, None, None]:
        logits, targets = ctx.saved_tensors
        for rows in _few_rows(logits):
            log_p = _log_softmax(logits[rows], ctx.temperature)
            p = log_p.exp()
            given = torch.zeros_like(p[:, :1])
            if for_logprobs is not None:
                given = for_logprobs[rows, None] / ctx.temperature
            factor = given
            if for_entropies is not None:
                entropy = -(p * log_p).sum(-1, keepdim=True)
                factor = given + for_entropies[rows, None] / ctx.temperature * (log_p + entropy)
            logits[rows] = p.mul_(factor.neg()).scatter_add_(1, targets[rows, None], given)
        return logits, None, None


def _few_rows(logits: Tensor) -> list[slice]:
    """On a CPU few rows at a time stay in its cache; a GPU takes all in one launch."""
    step = ROWS_ON_CPU if logits.device.type == "cpu" else max(1, len(logits))
    return [slice(start, start + step) for start in range(0, len(logits), step)]


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    wide = logits.to(_wide(logits))
    return F.log_softmax(wide / temperature if temperature != 1.0 else wide, dim=-1)


def _wide(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def chunk_count(tokens: int, chunk_tokens: int) -> int:
    """How many chunks of at most `chunk_tokens` the tokens need; at least 1, even for none."""
    return max(1, -(-tokens // chunk_tokens))
