"""How a rollout engine on a CPU draws tokens: one random number a token, by inversion.

vLLM 0.32 draws by the Gumbel trick, a random number for every entry of the vocabulary, which is a
tenth of a rollout on a CPU (docs/log.md). Here a token is the first one at which the cumulative
probability exceeds u, with u in [0, 1) drawn by the request's own generator (Devroye 1986,
Non-Uniform Random Variate Generation, chapter III, section 2). Probabilities are added up by blocks
of the vocabulary, and the one block that u falls into again token by token, in float64.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64
"""Tokens whose probabilities are added up first."""

BELOW_ONE = 1.0 - 2.0**-53
"""The largest place: times any total it is less than that, so what lies there has a weight."""


def draw_by_inversion(worker: Any) -> None:
    """Within a vLLM worker: replace how its sampler draws, wherever top-k and top-p are off."""
    sampler = worker.model_runner.sampler.topk_topp_sampler
    if sampler.logprobs_mode != "processed_logprobs":
        raise ValueError(
            f"vLLM's sampler gives {sampler.logprobs_mode}; one that draws by inversion gives "
            "processed_logprobs: start the engine with them"
        )
    as_before = sampler.forward

    def forward(
        logits: Tensor, generators: dict[int, torch.Generator], k: Tensor | None, p: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if k is not None or p is not None:
            filtered: tuple[Tensor, Tensor | None] = as_before(logits, generators, k, p)
            return filtered
        logprobs = logits.log_softmax(-1, dtype=torch.float32)
        return invert(logprobs.exp(), uniforms(len(logits), generators)), logprobs

    sampler.forward = forward


def uniforms(rows: int, generators: dict[int, torch.Generator]) -> Tensor:
    """A number in [0, 1) for each row, float64 [rows]; rows without a generator share torch's."""
    drawn = [
        torch.rand((), generator=generators.get(row), dtype=torch.float64) for row in range(rows)
    ]
    return torch.stack(drawn)


def invert(probabilities: Tensor, places: Tensor) -> Tensor:
    """First token of each row at which the cumulative probability exceeds `places` of the whole.

    Args:
        probabilities: float32 [B, V], not negative; rows need not add up to 1.
        places: float64 [B] in [0, 1).

    Returns:
        int64 [B]. A token of probability 0 is never among them; of a row that is not finite, any.
    """
    if missing := -probabilities.shape[-1] % BLOCK:
        probabilities = F.pad(probabilities, (0, missing))
    blocks = probabilities.unflatten(-1, (-1, BLOCK))
    block, within = _find(blocks.sum(-1), places)
    token, _ = _find(blocks[torch.arange(len(block)), block], within)
    return block * BLOCK + token


def _find(weights: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Where in cumulative `weights` [B, n] the `places` are: index, and place in that weight."""
    ends = weights.cumsum(-1, dtype=torch.float64)
    at = places[:, None] * ends[:, -1:]
    index = torch.searchsorted(ends, at, right=True).clamp(max=weights.shape[-1] - 1)
    weight = weights.gather(-1, index).double()
    start = ends.gather(-1, index) - weight
    return index.squeeze(-1), ((at - start) / weight).clamp(0.0, BELOW_ONE).squeeze(-1)
