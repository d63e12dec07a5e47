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
from alignment.training.roles import Critic, Policy, PPORoles
from alignment.training.sampler_gap import require_small_gap, rollout_gap
from alignment.training.side_by_side import Task, side_by_side


def score_rollout(
    config: PPOConfig,
    roles: PPORoles,
    rollout: Rollout,
    minibatches: Sequence[Sequence[int]],
    clock: PhaseClock,
    *,
    trains_policy: bool = True,
) -> ScoredRollout:
    """Ask every model about the rollout, before any of them is updated.

    Models on devices of their own answer at the same time, the others in turn. `minibatches` are
    those of the first epoch; the first of them will be trained on next, by the policy only if
    `trains_policy`.
    """

    def score() -> Tensor:
        with clock.phase("score"):
            return roles.reward_model.scores(rollout)

    def reference_logprobs() -> Tensor:
        with clock.phase("reference_logprobs"):
            return roles.reference.logprobs(rollout)

    def critic_values(critic: Critic) -> tuple[Tensor, Tensor]:
        with clock.phase("values"):
            is_ended = config.score_position == "after_end"
            ends = critic.scores(rollout) if is_ended else torch.zeros(len(rollout.token_ids))
            return _values(critic, rollout, minibatches), ends

    def old_logprobs() -> Tensor:
        if config.old_logprobs == "sampler":
            return rollout.sampling_logprobs
        with clock.phase("old_logprobs"):
            return _logprobs(roles.policy, rollout, minibatches, is_trained=trains_policy)

    # The policy last: where one follows the other, none works beside the pass that it keeps.
    tasks: list[Task] = [(roles.reward_model, score), (roles.reference, reference_logprobs)]
    if roles.critic is not None:
        tasks.append((roles.critic, partial(critic_values, roles.critic)))
    scores, reference, *of_critic, old = side_by_side([*tasks, (roles.policy, old_logprobs)])
    values, ends = of_critic[0] if of_critic else (torch.zeros_like(old), torch.zeros(len(old)))
    return ScoredRollout(
        **{f.name: getattr(rollout, f.name) for f in fields(rollout)},
        scores=scores,
        old_logprobs=old,
        reference_logprobs=reference,
        old_values=values,
        end_values=ends,
    )


def _logprobs(
    policy: Policy, rollout: Rollout, minibatches: Sequence[Sequence[int]], *, is_trained: bool
) -> Tensor:
    """The policy's, asked for in minibatches: the same rows in the same matrix products give the
    same bits, so that the first ratio is exactly 1.
    """
    said = torch.zeros(rollout.token_ids.shape)
    first, *others = minibatches
    for rows in (*others, first):
        is_next = is_trained and rows is first
        part = policy.logprobs(select_rows(rollout, rows), trained_next=is_next)
        said[rows, : part.shape[1]] = part
    return said


def _values(critic: Critic, rollout: Rollout, minibatches: Sequence[Sequence[int]]) -> Tensor:
    """The critic's, asked for of the minibatch that is trained on next and of all others."""
    said = torch.zeros(rollout.token_ids.shape)
    first, others = minibatches[0], [row for rows in minibatches[1:] for row in rows]
    for rows in (others, first):
        if rows:
            part = critic.values(select_rows(rollout, rows), trained_next=rows is first)
            said[rows, : part.shape[1]] = part
    return said


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
