"""The two losses of PPO, as microbatch sums, and what they are divided by."""

from functools import partial

import torch

from alignment.config import PPOConfig
from alignment.experience import Experience
from alignment.objectives.aggregation import (
    Aggregation,
    aggregation_denominator,
    aggregation_numerator,
)
from alignment.objectives.kl import KLEstimator, kl_estimate
from alignment.objectives.policy_losses import ppo_policy_loss
from alignment.objectives.value_losses import ppo_value_loss
from alignment.training.roles import LogprobOutputs, Loss, LossSums, ValueOutputs


def policy_objective(config: PPOConfig, *, kl_coefficient: float) -> Loss:
    """The policy's loss under these settings and the step's KL coefficient."""
    return partial(
        policy_loss,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        dual_clip=config.dual_clip,
        aggregation=config.aggregation,
        kl_coefficient=kl_coefficient if config.kl_placement == "loss" else 0.0,
        kl_estimator=config.kl_estimator,
        kl_clamp_nats=config.kl_clamp_nats,
        entropy_coefficient=config.entropy_coefficient,
    )


def policy_loss(
    outputs: LogprobOutputs,
    batch: Experience,
    *,
    clip_low: float,
    clip_high: float,
    aggregation: Aggregation,
    dual_clip: float | None = None,
    kl_coefficient: float = 0.0,
    kl_estimator: KLEstimator = "k3",
    kl_clamp_nats: float | None = None,
    entropy_coefficient: float = 0.0,
) -> LossSums:
    """Clipped surrogate of a microbatch, plus KL and minus entropy where they have a weight.

    Metrics are sums over response tokens, of `log_ratio` its magnitude's.
    """
    mask = batch.response_mask
    per_token = ppo_policy_loss(
        outputs.new_logprobs,
        batch.old_logprobs,
        batch.advantages,
        mask,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
    )
    losses = per_token.losses
    moved = (outputs.new_logprobs.detach() - batch.old_logprobs)[mask].abs()
    if kl_coefficient:
        losses = losses + kl_coefficient * kl_estimate(
            outputs.new_logprobs,
            batch.reference_logprobs,
            estimator=kl_estimator,
            clamp_nats=kl_clamp_nats,
        )
    if entropy_coefficient:
        losses = losses - entropy_coefficient * outputs.entropy
    return LossSums(
        loss=aggregation_numerator(losses, mask, aggregation),
        metrics={
            "tokens": mask.sum(),
            "all_tokens": batch.attention_mask.sum(),
            "entropy": outputs.entropy[mask].sum(),
            "clipped": per_token.is_clipped.sum(),
            "approximate_kl": per_token.approximate_kl.sum(),
            "log_ratio": moved.sum(),
            "log_ratio_max": moved.max(),
            "ratio_deviation_max": (per_token.ratio[mask] - 1).abs().max(),
        },
    )


def critic_objective(config: PPOConfig) -> Loss:
    """The critic's loss under these settings."""
    has_end = config.score_position == "after_end"
    return partial(critic_loss, clip=config.value_clip, has_end=has_end)


def critic_loss(
    outputs: ValueOutputs, batch: Experience, *, clip: float | None, has_end: bool = False
) -> LossSums:
    """Squared error of the values of a microbatch; metrics are sums over response tokens.

    `has_end` adds that of the value after each response's last token.
    """
    per_token = ppo_value_loss(
        outputs.new_values, batch.old_values, batch.returns, batch.response_mask, clip=clip
    )
    loss = per_token.losses.sum()
    if has_end:
        new, old, returns = (
            values.unsqueeze(1) for values in (outputs.scores, batch.end_values, batch.end_returns)
        )
        exists = torch.ones_like(new, dtype=torch.bool)
        loss = loss + ppo_value_loss(new, old, returns, exists, clip=clip).losses.sum()
    return LossSums(
        loss=loss,
        metrics={
            "tokens": batch.response_mask.sum(),
            "all_tokens": batch.attention_mask.sum(),
            "clipped": per_token.is_clipped.sum(),
        },
    )


def critic_denominator(minibatch: Experience, config: PPOConfig) -> float:
    """Response tokens, and one step more a sequence where the score is paid after the end."""
    ends = len(minibatch.token_ids) if config.score_position == "after_end" else 0
    return minibatch_denominator(minibatch, "token-mean") + ends


def minibatch_denominator(minibatch: Experience, aggregation: Aggregation) -> float:
    """What the minibatch's summed loss is divided by, known before the first backward."""
    return float(aggregation_denominator(minibatch.response_mask, aggregation))
