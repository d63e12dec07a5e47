"""Each method's advantages: a few lines over the token rewards of a scored rollout.

Rewards already carry the score, and the KL penalty where the method puts it into the reward.
Sources and the places of KL are in docs/numerics.md, section 2, "Methods".
"""

from collections.abc import Callable

import torch
from torch import Tensor

from alignment.config import PPOConfig
from alignment.experience import ScoredRollout
from alignment.objectives.advantages import (
    generalized_advantages,
    group_relative_advantages,
    leave_one_out_advantages,
)
from alignment.objectives.masking import masked_whiten
from alignment.objectives.sampler_weights import sampler_weights


def advantages_and_returns(
    config: PPOConfig, rewards: Tensor, paid: Tensor, scored: ScoredRollout
) -> tuple[Tensor, Tensor]:
    """Advantages as the update uses them, and the critic's targets, both float32 [B, T].

    `rewards` [B, T] are those of the tokens, `paid` [B] is each response's score, which they
    hold already unless it is paid after the end.
    Whitening comes after the method, over the whole rollout; weights that correct for the
    sampler come last. Returns are taken before both.
    """
    mask = scored.response_mask
    advantages, returns = ESTIMATORS[config.method](config, rewards, paid, scored)
    if config.whiten_advantages:
        unbiased = config.whitening_variance == "unbiased"
        advantages = masked_whiten(advantages, mask, unbiased=unbiased)
    if config.sampler_correction is not None:
        advantages = advantages * sampler_weights(
            scored.old_logprobs,
            scored.sampling_logprobs,
            mask,
            **config.sampler_correction.model_dump(),
        )
    return advantages, returns


def _by_critic(
    config: PPOConfig, rewards: Tensor, paid: Tensor, scored: ScoredRollout
) -> tuple[Tensor, Tensor]:
    """PPO. Without a critic its values are 0 and lambda is 1: the reward to go, REINFORCE++."""
    is_after_end = config.score_position == "after_end"
    return generalized_advantages(
        rewards,
        scored.old_values,
        scored.response_mask,
        discount=config.discount,
        gae_lambda=config.gae_lambda,
        gaps=config.gae_gaps,
        end_values=scored.end_values if is_after_end else None,
        end_rewards=paid if is_after_end else None,
    )


def _leave_one_out(
    config: PPOConfig, rewards: Tensor, paid: Tensor, scored: ScoredRollout
) -> tuple[Tensor, Tensor]:
    total = rewards.sum(1)
    return _on_every_token(leave_one_out_advantages(total, scored.prompt_index), total, scored)


def _group_relative(
    config: PPOConfig, rewards: Tensor, paid: Tensor, scored: ScoredRollout
) -> tuple[Tensor, Tensor]:
    total = rewards.sum(1)
    advantages = group_relative_advantages(
        total, scored.prompt_index, divide_by_deviation=config.method == "grpo"
    )
    return _on_every_token(advantages, total, scored)


def _on_every_token(
    advantages: Tensor, returns: Tensor, scored: ScoredRollout
) -> tuple[Tensor, Tensor]:
    """A whole response is one action: all its tokens have its advantage and its return."""
    mask = scored.response_mask
    zero = torch.zeros((), dtype=advantages.dtype)
    return (
        torch.where(mask, advantages.unsqueeze(1), zero),
        torch.where(mask, returns.unsqueeze(1), zero),
    )


Estimator = Callable[[PPOConfig, Tensor, Tensor, ScoredRollout], tuple[Tensor, Tensor]]

ESTIMATORS: dict[str, Estimator] = {
    "ppo": _by_critic,
    "rloo": _leave_one_out,
    "grpo": _group_relative,
    "dr_grpo": _group_relative,
    "reinforce++": _by_critic,
    "reinforce++_baseline": _group_relative,
}
