"""The roles of `alignment.training.ppo`, all in this process, around the enumerable task."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from alignment.config import OptimizerConfig, PPOConfig, TrainingConfig
from alignment.experience import Rollout, TokenBatch
from alignment.role_specs import FrozenSpec, TrainableSpec
from alignment.roles_local import LocalFrozen, LocalGenerator, LocalTrainable
from alignment.training.roles import PPORoles
from benchmarks.exact.recurrent import RecurrentLM, language_model, value_model
from benchmarks.exact.task import Task, response_logprobs

NO_END_OF_TURN = -1
NOWHERE = Path("in this process")
MANY = 1_000_000


@dataclass(frozen=True)
class TableScorer:
    """The task's table of rewards as a reward model."""

    task: Task

    def scores(self, batch: TokenBatch) -> Tensor:
        """The reward of each response, float32 [B]."""
        return self.task.reward_of(batch)


class NothingSaved:
    """Checkpoints of a training that takes seconds."""

    def restore(self, roles: PPORoles) -> None:
        """There is never one to go on from."""

    def write(self, roles: PPORoles, state: object) -> None:
        """Forget it."""


class NothingKept:
    """A journal of a training that is never resumed."""

    def replay(self, step: int) -> None:
        """Every step is sampled."""

    def keep(self, step: int, rollout: Rollout) -> Rollout:
        """Hand it back."""
        return rollout


@dataclass
class Curve:
    """A metric sink that looks at the whole policy every few steps."""

    task: Task
    policy: LocalTrainable
    every: int
    points: list[tuple[int, Tensor]] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep the step's metrics and, on the interval, every response's log-probability."""
        self.metrics.append(dict(metrics))
        if step % self.every == 0:
            self.look(step)

    def look(self, step: int) -> None:
        """Enumerate the policy now."""
        causal_lm: Any = self.policy.module.causal_lm
        self.points.append((step, response_logprobs(causal_lm, self.task)))


def language_role(
    causal_lm: RecurrentLM, training: TrainingConfig, optimizer: OptimizerConfig, *, updates: int
) -> LocalTrainable:
    """The policy, starting from the reference."""
    spec = _trainable("policy", "language", training, optimizer, updates)
    return LocalTrainable(language_model(causal_lm), spec)


def reference_role(causal_lm: RecurrentLM) -> LocalFrozen:
    """The reference."""
    spec = FrozenSpec(
        name="reference", kind="language", model_folder=NOWHERE, tokens_per_microbatch=MANY
    )
    return LocalFrozen(language_model(causal_lm), spec)


def make_roles(causal_lm: RecurrentLM, task: Task, config: PPOConfig) -> PPORoles:
    """Policy, reference, table of rewards, generator, and a critic where the method has one."""
    critic = None
    if config.critic_optimizer is not None:
        updates = config.steps * config.updates_per_step
        spec = _trainable("critic", "value", config, config.critic_optimizer, updates)
        critic = LocalTrainable(value_model(causal_lm), spec)
    sampler = language_model(causal_lm).causal_lm
    return PPORoles(
        policy=language_role(causal_lm, config, config.optimizer, updates=config.policy_updates),
        critic=critic,
        reference=reference_role(causal_lm),
        reward_model=TableScorer(task),
        generator=LocalGenerator(sampler, end_of_turn=NO_END_OF_TURN),
    )


def _trainable(
    name: str,
    kind: Literal["language", "value"],
    training: TrainingConfig,
    optimizer: OptimizerConfig,
    updates: int,
) -> TrainableSpec:
    return TrainableSpec(
        name=name,
        kind=kind,
        model_folder=NOWHERE,
        optimizer=optimizer,
        training=training,
        total_steps=updates,
        seed=0,
    )
