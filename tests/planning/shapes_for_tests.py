"""Specs, batches and machines for the tests of planning."""

from pathlib import Path
from typing import Any, Literal

from alignment.config import OptimizerConfig, RoleResources, TrainingConfig
from alignment.planning.machines import GIB, Machines, Node, gpu_kind
from alignment.planning.memory import BatchSizes
from alignment.planning.model_shapes import ModelShape
from alignment.planning.plan import StageRequest
from alignment.role_specs import FrozenSpec, GeneratorSpec, RoleSpec, TrainableSpec

NO_FOLDER = Path("model")
SMALL_BATCH = BatchSizes(rows=16, prompt_tokens=64, response_tokens=48)


def trained(
    name: str = "policy",
    kind: Literal["language", "value"] = "language",
    *,
    ranks: int = 1,
    gpus: int = 0,
    **training: Any,
) -> TrainableSpec:
    return TrainableSpec(
        name=name,
        kind=kind,
        model_folder=NO_FOLDER,
        optimizer=OptimizerConfig(learning_rate=1e-5),
        training=TrainingConfig(**training),
        total_steps=1,
        seed=0,
        resources=RoleResources(ranks=ranks, gpus_per_rank=gpus),
    )


def frozen(
    name: str = "reference",
    kind: Literal["language", "value"] = "language",
    *,
    ranks: int = 1,
    gpus: int = 0,
    tokens_per_microbatch: int = 2048,
) -> FrozenSpec:
    return FrozenSpec(
        name=name,
        kind=kind,
        model_folder=NO_FOLDER,
        tokens_per_microbatch=tokens_per_microbatch,
        resources=RoleResources(ranks=ranks, gpus_per_rank=gpus),
    )


def engine(*, ranks: int = 1, gpus: int = 0, **settings: Any) -> GeneratorSpec:
    return GeneratorSpec(
        name="generator",
        model_folder=NO_FOLDER,
        max_sequence_tokens=1024,
        resources=RoleResources(ranks=ranks, gpus_per_rank=gpus),
        **settings,
    )


def ppo_request(
    shape: ModelShape, batch: BatchSizes = SMALL_BATCH, *, gpus: int = 0, **training: Any
) -> StageRequest:
    specs: tuple[RoleSpec, ...] = (
        trained("policy", gpus=gpus, **training),
        trained("critic", "value", gpus=gpus, **training),
        frozen("reference", gpus=gpus),
        frozen("reward_model", "value", gpus=gpus),
        engine(gpus=gpus),
    )
    return StageRequest(
        stage="ppo",
        specs=specs,
        shapes={spec.name: shape for spec in specs},
        batches={spec.name: batch for spec in specs},
    )


def machines(
    *, nodes: int = 1, gpus: int = 0, kind: str = "A100-80G", memory_gib: float = 1000.0
) -> Machines:
    node = Node(
        name="node",
        cpus=96.0,
        gpus=gpus,
        memory=int(memory_gib * GIB),
        gpu=gpu_kind(kind) if gpus else None,
    )
    return Machines(nodes=(node,) * nodes, source="test")
