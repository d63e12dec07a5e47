"""From prompts and sampled tokens to what the update needs: scoring, checks, rewards."""

from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor

from alignment.config import PPOConfig
from alignment.data.batching import minibatch_order
from alignment.errors import DataError, NumericsError
from alignment.experience import (
    EncodedPrompt,
    Experience,
    Rollout,
    ScoredRollout,
    select_rows,
)
from alignment.objectives.kl import adaptive_kl_coefficient, kl_shaped_rewards
from alignment.objectives.masking import masked_whiten
from alignment.objectives.running_moments import RunningMoments
from alignment.seeds import derive_seed
from alignment.training.guards import require_finite, require_finite_rows, require_one_each
from alignment.training.ppo_advantages import advantages_and_returns
from alignment.training.ppo_report import PhaseClock
from alignment.training.roles import PPORoles


def prompts_of_step(
    prompts: Sequence[EncodedPrompt], config: PPOConfig, *, seed: int, step: int
) -> list[EncodedPrompt]:
    """The step's prompts, each repeated for its responses; a pure function of seed and step.

    Prompts are visited in a shuffled order, reshuffled when all have been seen: fewer prompts
    than a step takes come again within the step.
    """
    if not prompts:
        raise DataError("there are no prompts to train on; give one or more")
    wanted = range(step * config.prompts_per_step, (step + 1) * config.prompts_per_step)
    chosen = []
    for position in wanted:
        epoch, place = divmod(position, len(prompts))
        (order,) = minibatch_order(
            len(prompts), size=len(prompts), seed=derive_seed(seed, "prompts"), epoch=epoch
        )
        chosen.append(prompts[order[place]])
    return [prompt for prompt in chosen for _ in range(config.responses_per_prompt)]


def score_rollout(
    roles: PPORoles, rollout: Rollout, minibatches: Sequence[Sequence[int]], clock: PhaseClock
) -> ScoredRollout:
    """Ask every model about the rollout, before any of them is updated.

    Old log-probabilities are asked for in the minibatches of the first epoch: the same rows in
    the same matrix products give the same bits, so that the first ratio is exactly 1.
    """
    with clock.phase("score"):
        scores = roles.reward_model.scores(rollout)
    with clock.phase("old_logprobs"):
        old_logprobs = torch.zeros(rollout.token_ids.shape)
        for rows in minibatches:
            part = roles.policy.logprobs(select_rows(rollout, rows))
            old_logprobs[rows, : part.shape[1]] = part
    with clock.phase("reference_logprobs"):
        reference_logprobs = roles.reference.logprobs(rollout)
    old_values = torch.zeros_like(old_logprobs)
    if roles.critic is not None:
        with clock.phase("values"):
            old_values = roles.critic.values(rollout)
    return ScoredRollout(
        **{f.name: getattr(rollout, f.name) for f in fields(rollout)},
        scores=scores,
        old_logprobs=old_logprobs,
        reference_logprobs=reference_logprobs,
        old_values=old_values,
    )


def check_scored(scored: ScoredRollout, config: PPOConfig, *, step: int) -> float:
    """Refuse numbers that are not finite, a KL or a gap beyond its limit; return the KL.

    Returns:
        KL of policy against reference in nats a sequence: k1 summed over response tokens, mean
        over sequences.

    Raises:
        NumericsError: names the sequence and the quantity, the KL and its budget, or the gap
            between sampler and trainer and its limit.
    """
    require_one_each("reward-model scores", scored.scores, len(scored.token_ids), step=step)
    require_finite_rows("reward-model score", scored.scores, step=step)
    require_finite_rows("policy log-probability", scored.old_logprobs, step=step)
    require_finite_rows("reference log-probability", scored.reference_logprobs, step=step)
    require_finite_rows("critic value", scored.old_values, step=step)
    kl_nats = float((scored.old_logprobs - scored.reference_logprobs).sum(1).mean())
    require_finite("KL", kl_nats, step=step)
    if kl_nats > config.kl_budget_nats:
        raise NumericsError(
            f"KL of the policy from its reference is {kl_nats:.2f} nats a sequence at step {step}, "
            f"over `ppo.kl_budget_nats` {config.kl_budget_nats:.2f}; training stopped at the last "
            "checkpoint. Raise `ppo.kl_coefficient`, lower the learning rate, or take fewer steps"
        )
    gap, limit = sampler_gap(scored), config.sampler_gap_limit_nats
    if limit is not None and not float(gap.mean()) <= limit:
        raise NumericsError(
            f"sampler and trainer differ by {float(gap.mean()):.2e} nats a token (largest "
            f"{float(gap.max()):.2e}) at step {step}, over `ppo.sampler_gap_limit_nats` "
            f"{limit:.2e}; the weights are as before. Compare `cluster.generator_precision` with "
            "`ppo.precision`, set `ppo.sampler_correction`, or raise the limit"
        )
    return kl_nats


def sampler_gap(scored: ScoredRollout) -> Tensor:
    """|sampler's - trainer's log-probability| of each response token, nats, float32 [N]."""
    return (scored.sampling_logprobs - scored.old_logprobs)[scored.response_mask].abs()


def build_experience(
    scored: ScoredRollout, config: PPOConfig, *, kl_coefficient: float, moments: RunningMoments
) -> Experience:
    """Scores to token rewards, and those to advantages and returns as the method has it.

    `moments` are those of all scores so far, these included; they matter for
    `ppo.normalise_scores` only.
    """
    mask = scored.response_mask
    old_logprobs = (
        scored.old_logprobs if config.old_logprobs == "trainer" else scored.sampling_logprobs
    )
    rewards = kl_shaped_rewards(
        shaped_scores(scored, config, moments),
        scored.old_logprobs,
        scored.reference_logprobs,
        mask,
        coefficient=kl_coefficient if config.kl_placement == "reward" else 0.0,
        estimator=config.kl_estimator,
        clamp_nats=config.kl_clamp_nats,
    )
    if config.whiten_rewards:
        unbiased = config.whitening_variance == "unbiased"
        rewards = masked_whiten(rewards, mask, shift_mean=False, unbiased=unbiased)
    advantages, returns = advantages_and_returns(config, rewards, scored)
    return Experience(
        token_ids=scored.token_ids,
        attention_mask=scored.attention_mask,
        response_mask=mask,
        old_logprobs=old_logprobs,
        reference_logprobs=scored.reference_logprobs,
        old_values=scored.old_values,
        advantages=advantages,
        returns=returns,
    )


def shaped_scores(scored: ScoredRollout, config: PPOConfig, moments: RunningMoments) -> Tensor:
    """Scores as they are paid, float32 [B]: normalised, clipped, then the missing-EOS rule."""
    scores = scored.scores
    if config.normalise_scores:
        scores = (scores - moments.mean) / (moments.deviation or 1.0)
    if config.reward_clip is not None:
        scores = scores.clamp(-config.reward_clip, config.reward_clip)
    paid = -config.missing_eos_penalty
    if config.missing_eos_rule == "subtract":
        return scores + paid * (~scored.finished)
    return torch.where(scored.finished, scores, paid)


def next_coefficient(
    config: PPOConfig, coefficient: float, scored: ScoredRollout, kl_nats: float
) -> float:
    """The next step's KL coefficient, given this step's and its KL in nats a sequence."""
    if config.adaptive_kl is None:
        return coefficient
    if config.adaptive_kl.unit == "token":
        kl_nats *= len(scored.scores) / float(scored.response_mask.sum())
    return adaptive_kl_coefficient(
        coefficient,
        kl_nats=kl_nats,
        target_nats=config.adaptive_kl.target_nats,
        horizon_sequences=config.adaptive_kl.horizon_sequences,
        num_sequences=config.sequences_per_step,
    )
