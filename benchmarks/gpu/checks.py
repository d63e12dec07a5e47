"""Losses on the device against the same on the CPU, values and gradients."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from alignment.objectives.logprobs import token_logprobs
from alignment.objectives.policy_losses import ppo_policy_loss
from alignment.objectives.preference_losses import preference_group_loss
from alignment.objectives.value_losses import ppo_value_loss

ROWS, COLUMNS, HIDDEN, VOCABULARY = 4, 32, 64, 512
TOLERANCE = 1e-4


def check_losses(device: torch.device) -> Iterator[dict[str, Any]]:
    """A record for each: largest difference of value or gradient, and whether it is small."""
    for name, loss in LOSSES.items():
        drawn = torch.Generator().manual_seed(0)
        inputs = [torch.randn(ROWS, COLUMNS, generator=drawn) for _ in range(3)]
        hidden = torch.randn(ROWS * COLUMNS, HIDDEN, generator=drawn)
        here = _value_and_gradient(loss, [*inputs, hidden], torch.device("cpu"))
        there = _value_and_gradient(loss, [*inputs, hidden], device)
        apart = max(float((a - b).abs().max()) for a, b in zip(here, there, strict=True))
        yield {"check": name, "difference": apart, "passed": apart < TOLERANCE}


def _value_and_gradient(
    loss: Callable[..., Tensor], inputs: list[Tensor], device: torch.device
) -> list[Tensor]:
    moved = [tensor.to(device).requires_grad_() for tensor in inputs]
    value = loss(*moved)
    gradients = torch.autograd.grad(value, moved, allow_unused=True)
    return [value.detach().cpu(), *(g.cpu() for g in gradients if g is not None)]


def _mask(like: Tensor) -> Tensor:
    return torch.arange(COLUMNS, device=like.device).expand(ROWS, COLUMNS) % 5 > 0


def _policy(new: Tensor, old: Tensor, advantages: Tensor, _hidden: Tensor) -> Tensor:
    losses = ppo_policy_loss(
        new, old.detach(), advantages.detach(), _mask(new), clip_low=0.2, clip_high=0.2
    )
    return losses.losses.mean()


def _value(new: Tensor, old: Tensor, returns: Tensor, _hidden: Tensor) -> Tensor:
    losses = ppo_value_loss(new, old.detach(), returns.detach(), _mask(new), clip=0.2)
    return losses.losses.mean()


def _preference(scores: Tensor, _old: Tensor, _returns: Tensor, _hidden: Tensor) -> Tensor:
    rows = torch.arange(ROWS * 2, device=scores.device)
    later = torch.arange(4, device=scores.device)[None] > (rows % 4)[:, None]
    sums = preference_group_loss(
        scores.flatten()[: ROWS * 2],
        group=rows // 4,
        member=rows % 4,
        preference=later.float(),
        pair_weight=later.float(),
    )
    return sums.loss


def _logprobs(_new: Tensor, _old: Tensor, _returns: Tensor, hidden: Tensor) -> Tensor:
    drawn = torch.Generator().manual_seed(1)
    head = torch.randn(VOCABULARY, HIDDEN, generator=drawn).to(hidden.device) / HIDDEN
    targets = torch.randint(VOCABULARY, (len(hidden),), generator=drawn).to(hidden.device)
    logprobs, entropy = token_logprobs(
        hidden, lambda some: some @ head.T, targets, chunk_tokens=50, with_entropy_gradient=True
    )
    return (logprobs + 0.1 * entropy).mean()


LOSSES: dict[str, Callable[..., Tensor]] = {
    "PPO policy loss": _policy,
    "PPO value loss": _value,
    "preference loss": _preference,
    "log-probabilities in chunks": _logprobs,
}
