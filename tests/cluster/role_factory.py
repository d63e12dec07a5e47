"""Specs, batches and losses for the tests of the cluster roles."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import ray

from alignment.cluster.groups import ActorGroup, Deadline
from alignment.cluster.processes import actor_environment
from alignment.cluster.session import Cluster
from alignment.config import ClusterConfig, OptimizerConfig, RoleResources, TrainingConfig
from alignment.experience import EncodedPrompt, TokenBatch, batch_from_rows
from alignment.role_specs import TrainableSpec
from alignment.training.roles import LogprobOutputs, LossSums, ValueOutputs

VOCABULARY = range(3, 250)


def make_cluster_config(**changes: Any) -> ClusterConfig:
    settings = {"object_store_gib": 0.25, "threads": 1, "start_timeout_s": 240.0}
    return ClusterConfig(**(settings | changes))


def trainable_spec(
    name: str,
    folder: Path,
    *,
    kind: Literal["language", "value"] = "language",
    ranks: int = 1,
    zero_stage: Literal[0, 1, 2, 3] = 0,
    precision: Literal["float32", "bfloat16"] = "float32",
    learning_rate: float = 1e-2,
) -> TrainableSpec:
    return TrainableSpec(
        name=name,
        kind=kind,
        model_folder=folder,
        optimizer=OptimizerConfig(
            learning_rate=learning_rate, warmup_steps=1, max_gradient_norm=100.0
        ),
        training=TrainingConfig(
            tokens_per_microbatch=64, zero_stage=zero_stage, precision=precision
        ),
        total_steps=20,
        seed=0,
        resources=RoleResources(ranks=ranks),
    )


def random_batch(rows: int, *, seed: int, longest: int = 30) -> TokenBatch:
    """Rows of very different lengths, so that microbatches and ranks get unequal shares."""
    draw = random.Random(seed)
    prompts = [draw.choices(VOCABULARY, k=draw.randint(1, longest)) for _ in range(rows)]
    responses = [draw.choices(VOCABULARY, k=draw.randint(1, longest)) for _ in range(rows)]
    return batch_from_rows(prompts, responses)


def random_prompts(count: int, *, tokens: int, seed: int) -> list[EncodedPrompt]:
    draw = random.Random(seed)
    return [
        EncodedPrompt(id=f"p{i}", token_ids=tuple(draw.choices(VOCABULARY, k=tokens + i)))
        for i in range(count)
    ]


def negative_logprob(outputs: LogprobOutputs, batch: TokenBatch) -> LossSums:
    tokens = batch.response_mask
    loss = -outputs.new_logprobs[tokens].sum()
    return LossSums(loss=loss, metrics={"tokens": tokens.sum()})


def squared_value(outputs: ValueOutputs, batch: TokenBatch) -> LossSums:
    return LossSums(loss=(outputs.new_values[batch.response_mask] - 1).square().sum(), metrics={})


def start_group(
    cluster: Cluster, actor_class: type[Any], spec: TrainableSpec, config: ClusterConfig
) -> ActorGroup:
    """Ranks of a test's own trainable class, started like the real ones."""
    environment = actor_environment(config, "deepspeed", gpus=0)
    actors = [
        ray.remote(actor_class)
        .options(num_cpus=0.1, runtime_env={"env_vars": environment})
        .remote(spec, config.call_timeout_s, rank=rank)
        for rank in range(spec.resources.ranks)
    ]
    group = ActorGroup(spec.name, actors, call_timeout_s=240.0, logs=cluster.logs)
    group.remember_processes(group.call("describe"))
    [point] = group.submit("open_meeting_point", [()]).wait(Deadline.after(240.0, "test"))
    group.call("start", point)
    return group


def with_name(spec: TrainableSpec, name: str) -> TrainableSpec:
    return replace(spec, name=name)
