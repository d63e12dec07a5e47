"""What every model says about a rollout, and the limits beyond which training stops."""

from collections.abc import Sequence
from dataclasses import fields
from functools import partial

import torch
from torch import Tensor

from alignment.config import PPOConfig
from alignment.errors import NumericsError
from alignment.experience import Rollout, ScoredRollout, select_rows
from alignment.training.guards import require_finite, require_finite_rows, require_one_each
from alignment.training.ppo_report import PhaseClock
from alignment.training.roles import Critic, PPORoles
from alignment.training.sampler_gap import require_small_gap, rollout_gap
from alignment.training.side_by_side import Task, side_by_side


def score_rollout(
    config: PPOConfig,
    roles: PPORoles,
    rollout: Rollout,
    minibatches: Sequence[Sequence[int]],
    clock: PhaseClock,
) -> ScoredRollout:
    """Ask every model about the rollout, before any of them is updated.

    Models on devices of their own answer at the same time, the others in turn.
    Old log-probabilities are asked for in the minibatches of the first epoch: the same rows in
    the same matrix products give the same bits, so that the first ratio is exactly 1. If they are
    to be the sampler's, the policy is not asked.
    """
    shape, sequences = rollout.token_ids.shape, len(rollout.token_ids)

    def score() -> Tensor:
        with clock.phase("score"):
            return roles.reward_model.scores(rollout)

    def policy_logprobs() -> Tensor:
        if config.old_logprobs == "sampler":
            return rollout.sampling_logprobs
        said = torch.zeros(shape)
        with clock.phase("old_logprobs"):
            for rows in minibatches:
                part = roles.policy.logprobs(select_rows(rollout, rows))
                said[rows, : part.shape[1]] = part
        return said

    def reference_logprobs() -> Tensor:
        with clock.phase("reference_logprobs"):
            return roles.reference.logprobs(rollout)

    def critic_values(critic: Critic) -> tuple[Tensor, Tensor]:
        with clock.phase("values"):
            is_ended = config.score_position == "after_end"
            return critic.values(rollout), critic.scores(rollout) if is_ended else end_values

    values, end_values = torch.zeros(shape), torch.zeros(sequences)
    tasks: list[Task] = [
        (roles.reward_model, score),
        (roles.policy, policy_logprobs),
        (roles.reference, reference_logprobs),
    ]
    if roles.critic is not None:
        tasks.append((roles.critic, partial(critic_values, roles.critic)))
    scores, old_logprobs, reference, *of_critic = side_by_side(tasks)
    if of_critic:
        [(values, end_values)] = of_critic
    return ScoredRollout(
        **{f.name: getattr(rollout, f.name) for f in fields(rollout)},
        scores=scores,
        old_logprobs=old_logprobs,
        reference_logprobs=reference,
        old_values=values,
        end_values=end_values,
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
    whose = "policy" if config.old_logprobs == "trainer" else "sampler"
    require_finite_rows(f"{whose} log-probability", scored.old_logprobs, step=step)
    require_finite_rows("reference log-probability", scored.reference_logprobs, step=step)
    require_finite_rows("critic value", scored.old_values, step=step)
    require_finite_rows("critic value after the end", scored.end_values, step=step)
    kl_nats = float((scored.old_logprobs - scored.reference_logprobs).sum(1).mean())
    require_finite("KL", kl_nats, step=step)
    if kl_nats > config.kl_budget_nats:
        raise NumericsError(
            f"KL of the policy from its reference is {kl_nats:.2f} nats a sequence at step {step}, "
            f"over `ppo.kl_budget_nats` {config.kl_budget_nats:.2f}; training stopped at the last "
            "checkpoint. Raise `ppo.kl_coefficient`, lower the learning rate, or take fewer steps"
        )
    require_small_gap(config, rollout_gap(scored), step=step)
    return kl_nats
