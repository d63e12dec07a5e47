"""AdamW and its schedule, the same for every role and backend."""

from collections.abc import Callable

import torch
from torch import nn

from alignment.config import OptimizerConfig


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only, not on biases and norms (Loshchilov & Hutter 2019)."""
    matrices = [p for p in module.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in module.parameters() if p.requires_grad and p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]  # adapters have matrices only
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=config.betas, eps=config.epsilon, fused=True
    )


def build_schedule(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then linear decay that meets the final fraction as the last step ends."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor(config, total_steps))


def learning_rate_factor(config: OptimizerConfig, total_steps: int) -> Callable[[int], float]:
    """Factor on the peak rate for optimiser step 0, 1, ... total_steps - 1."""
    warmup, final = config.warmup_steps, config.final_learning_rate_fraction

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(1, total_steps - warmup)
        return 1.0 - (1.0 - final) * min(1.0, progress)

    return factor


def trained_state_bytes(module: nn.Module, *, zero_stage: int = 0, averaged: bool = False) -> int:
    """About what a checkpoint of the module takes on disk, all ranks together.

    Float32 weights, two moments of AdamW, above ZeRO 0 the optimiser's own copy of the weights,
    and the weights' average where one is kept. Frozen weights are not written.
    """
    numbers = sum(getattr(p, "ds_numel", p.numel()) for p in module.parameters() if p.requires_grad)
    return 4 * numbers * ((4 if zero_stage else 3) + averaged)
