"""The roles of `alignment.training.ppo`, all in this process, around the enumerable task."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from alignment.config import OptimizerConfig, PPOConfig
from alignment.experience import TokenBatch
from alignment.models.loading import load_language_model
from alignment.role_specs import FrozenSpec, TrainableSpec
from alignment.roles_local import LocalGenerator, LocalTrainable, start_roles
from alignment.training.roles import PPORoles
from benchmarks.exact.task import Task, response_logprobs

NO_END_OF_TURN = -1


@dataclass(frozen=True)
class TableScorer:
    """The task's table of rewards as a reward model."""

    task: Task

    def scores(self, batch: TokenBatch) -> Tensor:
        """The reward of each response, float32 [B]."""
        return self.task.reward_of(batch)


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
        if step == 1 or step % self.every == 0:
            self.look(step)

    def look(self, step: int) -> None:
        """Enumerate the policy now."""
        causal_lm: Any = self.policy.module.causal_lm
        self.points.append((step, response_logprobs(causal_lm, self.task)))


def language_role(
    folder: Path, config: PPOConfig, optimizer: OptimizerConfig, *, updates: int
) -> LocalTrainable:
    """The policy, starting from the reference."""
    spec = TrainableSpec(
        name="policy",
        kind="language",
        model_folder=folder,
        optimizer=optimizer,
        training=config,
        total_steps=updates,
        seed=0,
        entropy_gradient=config.entropy_coefficient > 0,
    )
    role: LocalTrainable = start_roles([spec])["policy"]
    return role


def make_roles(folder: Path, task: Task, config: PPOConfig) -> PPORoles:
    """Policy, reference, table of rewards, generator, and a critic where the method has one."""
    critic = None
    if config.critic_optimizer is not None:
        spec = TrainableSpec(
            name="critic",
            kind="value",
            model_folder=folder,
            optimizer=config.critic_optimizer,
            training=config,
            total_steps=config.steps * config.updates_per_step,
            seed=0,
        )
        critic = start_roles([spec])["critic"]
    reference = FrozenSpec(
        name="reference",
        kind="language",
        model_folder=folder,
        tokens_per_microbatch=config.tokens_per_microbatch,
    )
    return PPORoles(
        policy=language_role(folder, config, config.optimizer, updates=config.policy_updates),
        critic=critic,
        reference=start_roles([reference])["reference"],
        reward_model=TableScorer(task),
        generator=LocalGenerator(load_language_model(folder).causal_lm, end_of_turn=NO_END_OF_TURN),
    )
