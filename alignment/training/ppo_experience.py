"""From sampled tokens to what the update needs: scoring, checks, rewards, advantages."""

from dataclasses import fields

from alignment.config import PPOConfig
from alignment.errors import NumericsError
from alignment.experience import Experience, Rollout, ScoredRollout
from alignment.objectives.advantages import generalized_advantages
from alignment.objectives.kl import kl_shaped_rewards
from alignment.objectives.masking import masked_whiten
from alignment.training.guards import require_finite, require_finite_rows
from alignment.training.ppo_report import PhaseClock
from alignment.training.roles import PPORoles


def score_rollout(roles: PPORoles, rollout: Rollout, clock: PhaseClock) -> ScoredRollout:
    """Ask every model about the rollout, before any of them is updated."""
    with clock.phase("score"):
        scores = roles.reward_model.scores(rollout)
    with clock.phase("old_logprobs"):
        old_logprobs = roles.policy.logprobs(rollout)
    with clock.phase("reference_logprobs"):
        reference_logprobs = roles.reference.logprobs(rollout)
    with clock.phase("values"):
        old_values = roles.critic.values(rollout)
    return ScoredRollout(
        **{f.name: getattr(rollout, f.name) for f in fields(rollout)},
        scores=scores,
        old_logprobs=old_logprobs,
        reference_logprobs=reference_logprobs,
        old_values=old_values,
    )


def check_scored(scored: ScoredRollout, *, budget_nats: float, step: int) -> float:
    """Refuse numbers that are not finite or a KL beyond the budget; return the KL.

    Returns:
        KL of policy against reference in nats a sequence: k1 summed over response tokens, mean
        over sequences.

    Raises:
        NumericsError: names the sequence and the quantity, or the KL and its budget.
    """
    require_finite_rows("reward-model score", scored.scores, step=step)
    require_finite_rows("policy log-probability", scored.old_logprobs, step=step)
    require_finite_rows("reference log-probability", scored.reference_logprobs, step=step)
    require_finite_rows("critic value", scored.old_values, step=step)
    kl_nats = float((scored.old_logprobs - scored.reference_logprobs).sum(1).mean())
    require_finite("KL", kl_nats, step=step)
    if kl_nats > budget_nats:
        raise NumericsError(
            f"KL of the policy from its reference is {kl_nats:.2f} nats a sequence at step {step}, "
            f"over `ppo.kl_budget_nats` {budget_nats:.2f}; training stopped at the last "
            "checkpoint. Raise `ppo.kl_coefficient`, lower the learning rate, or take fewer steps"
        )
    return kl_nats


def build_experience(
    scored: ScoredRollout, config: PPOConfig, *, kl_coefficient: float
) -> Experience:
    """KL-shaped rewards, then advantages and returns, then whitening over the whole rollout."""
    mask = scored.response_mask
    scores = scored.scores
    if config.reward_clip is not None:
        scores = scores.clamp(-config.reward_clip, config.reward_clip)
    scores = scores - config.missing_eos_penalty * (~scored.finished)
    rewards = kl_shaped_rewards(
        scores,
        scored.old_logprobs,
        scored.reference_logprobs,
        mask,
        coefficient=kl_coefficient,
        estimator=config.kl_estimator,
    )
    advantages, returns = generalized_advantages(
        rewards, scored.old_values, mask, discount=config.discount, gae_lambda=config.gae_lambda
    )
    if config.whiten_advantages:
        advantages = masked_whiten(advantages, mask)
    return Experience(
        token_ids=scored.token_ids,
        attention_mask=scored.attention_mask,
        response_mask=mask,
        old_logprobs=scored.old_logprobs,
        old_values=scored.old_values,
        advantages=advantages,
        returns=returns,
    )
