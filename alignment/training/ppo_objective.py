"""The two losses of PPO, as microbatch sums, and what they are divided by."""

from alignment.experience import Experience
from alignment.objectives.aggregation import (
    Aggregation,
    aggregation_denominator,
    aggregation_numerator,
)
from alignment.objectives.policy_losses import ppo_policy_loss
from alignment.objectives.value_losses import ppo_value_loss
from alignment.training.roles import LogprobOutputs, LossSums, ValueOutputs


def policy_loss(
    outputs: LogprobOutputs,
    batch: Experience,
    *,
    clip_low: float,
    clip_high: float,
    aggregation: Aggregation,
) -> LossSums:
    """Clipped surrogate of a microbatch; metrics are sums over response tokens."""
    mask = batch.response_mask
    per_token = ppo_policy_loss(
        outputs.new_logprobs,
        batch.old_logprobs,
        batch.advantages,
        mask,
        clip_low=clip_low,
        clip_high=clip_high,
    )
    return LossSums(
        loss=aggregation_numerator(per_token.losses, mask, aggregation),
        metrics={
            "tokens": mask.sum(),
            "entropy": outputs.entropy[mask].sum(),
            "clipped": per_token.is_clipped.sum(),
            "approximate_kl": per_token.approximate_kl.sum(),
            "ratio_deviation_max": (per_token.ratio[mask] - 1).abs().max(),
        },
    )


def critic_loss(outputs: ValueOutputs, batch: Experience, *, clip: float | None) -> LossSums:
    """Squared error of the values of a microbatch; metrics are sums over response tokens."""
    per_token = ppo_value_loss(
        outputs.new_values, batch.old_values, batch.returns, batch.response_mask, clip=clip
    )
    return LossSums(
        loss=per_token.losses.sum(),
        metrics={"tokens": batch.response_mask.sum(), "clipped": per_token.is_clipped.sum()},
    )


def minibatch_denominator(minibatch: Experience, aggregation: Aggregation) -> float:
    """What the minibatch's summed loss is divided by, known before the first backward."""
    return float(aggregation_denominator(minibatch.response_mask, aggregation))
