"""What a role needs in order to start: plain records that any backend can read.

`alignment.roles_local.start_roles` and `alignment.cluster.Cluster.start_roles` both take a
sequence of specs and return the started roles by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alignment.config import (
    ClusterConfig,
    OptimizerConfig,
    Precision,
    RoleResources,
    TrainingConfig,
)

ONE_PROCESS = RoleResources()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainableSpec:
    """A model with an optimiser: `policy` and `sft` are language models, the others value models.

    `total_steps` is the number of optimiser steps, over which the learning rate decays.
    `layers` keeps only the first transformer layers (value models). `temperature` divides the
    logits of a language model, so that its log-probabilities are those of the sampler.
    `entropy_gradient` lets a loss differentiate the entropy, which costs memory in the backward.
    `heads` is how many heads a new value model gets; with several its scores are [B, heads].
    `ema_decay` keeps a moving average of the weights, which is exported in their place.
    """

    name: str
    kind: Literal["language", "value"]
    model_folder: Path
    optimizer: OptimizerConfig
    training: TrainingConfig
    total_steps: int
    seed: int
    resources: RoleResources = ONE_PROCESS
    layers: int | None = None
    temperature: float = 1.0
    entropy_gradient: bool = False
    heads: int = 1
    ema_decay: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenSpec:
    """A model that only answers: the reference (`language`) or the reward model (`value`).

    `adapter_off` names a policy with LoRA on the same folder, started together with it: the
    policy's own processes then answer, adapters off, and `resources` are not used.
    `keeps_heads` lets an ensemble answer with one score a head, [B, heads], not with their mean.
    """

    name: str
    kind: Literal["language", "value"]
    model_folder: Path
    precision: Precision = "float32"
    tokens_per_microbatch: int = 4096
    temperature: float = 1.0
    resources: RoleResources = ONE_PROCESS
    adapter_off: str | None = None
    keeps_heads: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorSpec:
    """A rollout engine; `seed` is unused by sampling, which takes a seed a sequence."""

    name: str
    model_folder: Path
    max_sequence_tokens: int
    max_parallel_sequences: int = 64
    precision: Precision = "float32"
    resources: RoleResources = ONE_PROCESS


RoleSpec = TrainableSpec | FrozenSpec | GeneratorSpec


def shares_with(spec: RoleSpec) -> str | None:
    """The role whose processes answer for this one; None if it has its own."""
    return spec.adapter_off if isinstance(spec, FrozenSpec) else None


def is_side_by_side(specs: Sequence[RoleSpec], config: ClusterConfig) -> bool:
    """Whether the CPU roles among `specs`, which start together, work at the same time: they are
    set to, and more than one of them trains.
    """
    trained = [
        spec
        for spec in specs
        if isinstance(spec, TrainableSpec) and not spec.resources.gpus_per_rank
    ]
    return config.side_by_side and len(trained) > 1


def keeps_memory(spec: RoleSpec, specs: Sequence[RoleSpec], config: ClusterConfig) -> bool:
    """Whether a role keeps what it freed while others work, which need that memory if they follow
    it. Side by side only sampling follows, which needs little, and the policy is the last to end
    its updates (it projects to the vocabulary): it keeps what it would have to fault in again.
    """
    is_policy = isinstance(spec, TrainableSpec) and spec.kind == "language"
    return is_policy and is_side_by_side(specs, config)


def threads_of(spec: RoleSpec, specs: Sequence[RoleSpec], config: ClusterConfig) -> int:
    """Compute threads of each rank of a role that starts together with `specs`."""
    if isinstance(spec, GeneratorSpec) or not is_side_by_side(specs, config):
        return config.threads
    return max(1, config.threads // 2)
