"""The update of one PPO step: policy and critic, for some epochs of the same minibatches."""

import threading
from functools import partial

from alignment.checkpoints import LoopState
from alignment.config import PPOConfig
from alignment.data.batching import minibatch_order
from alignment.experience import Experience, select_rows
from alignment.training.guards import require_finite
from alignment.training.ppo_objective import (
    critic_denominator,
    critic_objective,
    minibatch_denominator,
    policy_objective,
)
from alignment.training.ppo_report import PhaseClock, UpdateLog
from alignment.training.pretraining_mix import PretrainingMix
from alignment.training.roles import Critic, Loss, PPORoles, StepReport, Trainable
from alignment.training.sampler_gap import Check, first_minibatch_check
from alignment.training.side_by_side import Task, side_by_side


def optimise(
    config: PPOConfig,
    roles: PPORoles,
    experience: Experience,
    state: LoopState,
    mix: PretrainingMix | None,
    *,
    seed: int,
    clock: PhaseClock,
) -> UpdateLog:
    """Update policy and critic for `config.epochs` epochs of shuffled minibatches.

    Neither reads the other, so they work at the same time where they own different devices, and
    else first the policy on all minibatches. The policy rests in the critic's warm-up steps. A
    minibatch that finds the policy more than `config.update_kl_limit_nats` from the one that
    sampled is the step's last, of the critic too, which therefore waits for it.
    """
    log = UpdateLog()
    order = _order(config, len(experience.token_ids), seed=seed)
    limit, halt = config.update_kl_limit_nats, threading.Event()
    tasks: list[Task] = []

    def update_policy() -> None:
        with clock.phase("update_policy"):
            for epoch, rows in order:
                if halt.is_set():
                    return
                if mix is not None:
                    done = len(log.policy)
                    log.add_pretraining(mix.add_gradient(roles.policy, state.step, done))
                minibatch = select_rows(experience, rows)
                check = None if log.policy else first_minibatch_check(config, step=state.step)
                log.add_policy(*_policy_step(config, roles, minibatch, state, epoch, check))
                if log.is_beyond(limit):
                    break
            roles.policy.rest()

    def update_critic(critic: Critic) -> None:
        objective = critic_objective(config)
        shared = order if limit is None or not log.policy else order[: len(log.policy)]
        with clock.phase("update_critic"):
            for epoch, rows in shared:
                if halt.is_set():
                    return
                minibatch = select_rows(experience, rows)
                tokens = critic_denominator(minibatch, config)
                log.add_critic(*_step("critic", critic, minibatch, objective, tokens, epoch))
            critic.rest()

    if state.step >= config.critic_warmup_steps:
        tasks.append((roles.policy, update_policy))
    if roles.critic is not None:
        tasks.append((roles.critic, partial(update_critic, roles.critic)))
    if limit is None:
        side_by_side(tasks, halt=halt)
    else:
        for _, update in tasks:
            update()
    return log


def minibatches_of(config: PPOConfig, sequences: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Rows of each minibatch of an epoch."""
    return minibatch_order(sequences, size=config.sequences_per_minibatch, seed=seed, epoch=epoch)


def _order(config: PPOConfig, sequences: int, *, seed: int) -> list[tuple[int, list[int]]]:
    """Every epoch's number with the rows of each of its minibatches."""
    return [
        (epoch, rows)
        for epoch in range(config.epochs)
        for rows in minibatches_of(config, sequences, seed=seed, epoch=epoch)
    ]


def _policy_step(
    config: PPOConfig,
    roles: PPORoles,
    minibatch: Experience,
    state: LoopState,
    epoch: int,
    check: Check | None,
) -> tuple[dict[str, float], StepReport]:
    loss = policy_objective(config, kl_coefficient=state.kl_coefficient)
    tokens = minibatch_denominator(minibatch, config.aggregation)
    return _step("policy", roles.policy, minibatch, loss, tokens, epoch, check)


def _step(
    name: str,
    role: Trainable,
    minibatch: Experience,
    loss: Loss,
    denominator: float,
    epoch: int,
    check: Check | None = None,
) -> tuple[dict[str, float], StepReport]:
    """One optimiser step; nothing that is not finite, or that `check` refuses, gets past it."""
    sums = role.forward_backward(minibatch, loss, denominator=denominator)
    require_finite(f"PPO {name} loss", sums["loss"], step=epoch)
    if check is not None:
        check(sums)
    report = role.step()
    require_finite(f"PPO {name} gradient norm", report.gradient_norm, step=epoch)
    return sums, report
