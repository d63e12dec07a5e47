"""The GPU path, as far as it goes without a GPU: vLLM's own signatures, and gloo for NCCL."""

import inspect
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import ray
import torch
from role_factory import (
    GlooGenerator,
    GlooPolicy,
    negative_logprob,
    random_batch,
    random_prompts,
    start_group,
    trainable_spec,
)

from alignment.cluster.generator import engine_arguments
from alignment.cluster.groups import ActorGroup
from alignment.cluster.processes import actor_environment
from alignment.cluster.roles import RemoteGenerator, RemotePolicy
from alignment.cluster.session import Cluster
from alignment.config import ClusterConfig, RoleResources
from alignment.experience import Sampling
from alignment.role_specs import GeneratorSpec

pytestmark = pytest.mark.engines


def test_vllm_takes_our_arguments_for_a_gpu() -> None:
    from vllm import LLM, EngineArgs
    from vllm.config import WeightTransferConfig

    spec = GeneratorSpec(
        name="generator",
        model_folder=Path("model"),
        max_sequence_tokens=64,
        precision="bfloat16",
        resources=RoleResources(gpus_per_rank=2),
    )
    arguments = engine_arguments(spec, ClusterConfig())
    bound = inspect.signature(LLM.__init__).bind(None, **arguments)
    assert bound.arguments.keys() - {"self", "kwargs"} <= set(inspect.signature(LLM).parameters)
    known = {field.name for field in fields(EngineArgs)}
    assert set(bound.arguments.get("kwargs", {})) <= known
    assert arguments["tensor_parallel_size"] == 2
    WeightTransferConfig(**arguments["weight_transfer_config"])


def test_vllm_and_deepspeed_take_our_weight_transfer_calls() -> None:
    import deepspeed
    from vllm import LLM
    from vllm.distributed.weight_transfer import (
        VLLMWeightSyncClient,
        WeightTransferEngineFactory,
        WeightTransferTrainerFactory,
    )
    from vllm.distributed.weight_transfer.nccl_engine import (
        NCCLTrainerInitInfo,
        NCCLWeightTransferInitInfo,
    )

    from alignment.cluster.nccl_transfer import EnginesClient, PolicySource

    information = NCCLTrainerInitInfo(master_address="host", master_port=1, world_size=3, rank=0)
    client = EnginesClient([], workers_per_engine=2)
    assert isinstance(client, VLLMWeightSyncClient)
    source = PolicySource([])
    inspect.signature(WeightTransferTrainerFactory.trainer_init).bind(
        information, client=client, source=source
    )
    assert information.backend in WeightTransferEngineFactory._registry
    NCCLWeightTransferInitInfo(
        master_address="host", master_port=1, world_size=3, rank_offset=1, packed=True
    )
    for operation, argument in (
        ("init_weight_transfer_engine", {"init_info": {}}),
        ("update_weights", {"update_info": {}}),
        ("finish_weight_update", None),
    ):
        inspect.signature(getattr(LLM, operation)).bind(None, argument)
    inspect.signature(LLM.start_weight_update).bind(None)
    inspect.signature(deepspeed.zero.GatheredParameters.__init__).bind(None, [])


@pytest.fixture
def engine_on_nccl(cluster: Cluster, tiny_model: Path) -> Iterator[ActorGroup]:
    spec = GeneratorSpec(name="generator", model_folder=tiny_model, max_sequence_tokens=512)
    environment = actor_environment(
        "vllm", threads=cluster.config.threads, gpus=0, scratch=cluster.scratch
    )
    actor = (
        ray.remote(GlooGenerator)
        .options(num_cpus=0.1, runtime_env={"env_vars": environment})
        .remote(spec, cluster.config, rank=0)
    )
    group = ActorGroup(
        "generator", [actor], call_timeout_s=240.0, logs=cluster.logs, gpus_per_rank=1
    )
    group.call("start")
    yield group
    group.end("the test is over")


def test_the_nccl_path_carries_a_zero_3_policy_over_gloo(
    cluster: Cluster, tiny_model: Path, engine_on_nccl: ActorGroup
) -> None:
    """Gathering, order, metadata, client and receiver are the real ones; the wire is gloo's."""
    spec = trainable_spec("policy", tiny_model, ranks=2, zero_stage=3)
    group = start_group(cluster, GlooPolicy, spec, cluster.config)
    group.gpus_per_rank = 1
    policy, generator = RemotePolicy(group), RemoteGenerator(engine_on_nccl)
    try:
        for version in (1, 2):
            batch = random_batch(6, seed=version)
            policy.forward_backward(batch, negative_logprob, denominator=100.0)
            policy.step()
            generator.load_weights(policy.weights(), version=version)
            prompts = random_prompts(4, tokens=140, seed=version)
            rollout = generator.generate(prompts, Sampling(max_response_tokens=40), seeds=range(4))
            expected = policy.logprobs(rollout)
            torch.testing.assert_close(rollout.sampling_logprobs, expected, atol=1e-4, rtol=0)
            assert rollout.policy_version.tolist() == [version] * 4
    finally:
        group.end("the test is over")
