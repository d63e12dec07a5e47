"""What goes wrong in vLLM's weight update without our handling, shown on the real engine.

Each test first does the obvious thing and sees wrong numbers (or a crash), then the same with
our handling and sees right ones. If a vLLM upgrade turns the first half green, the handling may go.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from role_factory import SabotagedGenerator, random_prompts

from alignment.cluster.groups import ActorGroup
from alignment.cluster.processes import actor_environment
from alignment.cluster.roles import RemoteGenerator
from alignment.cluster.session import Cluster
from alignment.cluster.weights import weights_from_folder
from alignment.errors import ClusterError
from alignment.experience import Rollout, Sampling
from alignment.models.tiny import make_tiny_model
from alignment.role_specs import FrozenSpec, GeneratorSpec
from alignment.roles_local import start_roles as start_local_roles

pytestmark = pytest.mark.engines

LONG_PROMPTS = random_prompts(4, tokens=300, seed=21)
SAMPLING = Sampling(max_response_tokens=40)


@pytest.fixture(scope="module")
def group(cluster: Cluster, tiny_model: Path) -> Iterator[ActorGroup]:
    import ray

    spec = GeneratorSpec(name="generator", model_folder=tiny_model, max_sequence_tokens=512)
    environment = actor_environment(
        "vllm", threads=cluster.config.threads, gpus=0, scratch=cluster.scratch
    )
    actor = (
        ray.remote(SabotagedGenerator)
        .options(num_cpus=0.1, runtime_env={"env_vars": environment})
        .remote(spec, cluster.config, rank=0)
    )
    group = ActorGroup("generator", [actor], call_timeout_s=240.0, logs=cluster.logs)
    group.call("start")
    yield group
    group.end("the tests are over")


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other-model")
    make_tiny_model(folder, seed=5)
    return folder


def gap_to(folder: Path, rollout: Rollout) -> float:
    """Largest difference between the engine's log-probabilities and those of the folder's model."""
    spec = FrozenSpec(name="r", kind="language", model_folder=folder)
    expected: Any = start_local_roles([spec])["r"].logprobs(rollout)
    gap = (expected - rollout.sampling_logprobs)[rollout.response_mask].abs()
    assert len(gap) > 100
    return float(gap.max())


def generate(group: ActorGroup, seed: int = 0) -> Rollout:
    seeds = range(seed, seed + len(LONG_PROMPTS))
    return RemoteGenerator(group).generate(LONG_PROMPTS, SAMPLING, seeds=seeds)


def test_loading_into_the_running_model_is_impossible(group: ActorGroup, other_model: Path) -> None:
    [outcome] = group.call("load_without_transfer_engine", other_model)
    assert outcome == "AttributeError: 'Parameter' object has no attribute 'weight_loader'"


def test_a_tied_head_stays_stale_unless_repacked(
    group: ActorGroup, tiny_model: Path, other_model: Path
) -> None:
    group.call("load_weights_only", other_model)
    assert gap_to(other_model, generate(group)) > 0.1
    group.call("repack")
    group.call("reset_cache")
    assert gap_to(other_model, generate(group)) < 1e-4

    RemoteGenerator(group).load_weights(weights_from_folder(tiny_model), version=1)
    assert gap_to(tiny_model, generate(group)) < 1e-4


def test_the_prefix_cache_stays_stale_unless_reset(
    group: ActorGroup, tiny_model: Path, other_model: Path
) -> None:
    """The sabotaged engine has prefix caching on; ours has it off, and resets it all the same."""
    RemoteGenerator(group).load_weights(weights_from_folder(tiny_model), version=1)
    generate(group)
    group.call("load_weights_only", other_model)
    group.call("repack")
    assert gap_to(other_model, generate(group, seed=50)) > 0.01
    RemoteGenerator(group).load_weights(weights_from_folder(tiny_model), version=2)
    assert gap_to(tiny_model, generate(group, seed=50)) < 1e-4


def test_an_engine_that_did_not_take_all_weights_is_found_out(
    group: ActorGroup, tiny_model: Path
) -> None:
    RemoteGenerator(group).load_weights(weights_from_folder(tiny_model), version=1)
    with pytest.raises(ClusterError, match=r"version 2 lack \d+ of the engine's parameters"):
        group.call("load_one_bucket_of_two", tiny_model)
    with pytest.raises(ClusterError, match="the last weight update broke off"):
        generate(group)
    RemoteGenerator(group).load_weights(weights_from_folder(tiny_model), version=3)
    assert torch.equal(generate(group).policy_version, torch.full((4,), 3))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-6), (torch.bfloat16, 0.04)])
def test_the_norm_is_vllms_kernel_and_right(
    group: ActorGroup, dtype: torch.dtype, error: float
) -> None:
    drawn = torch.Generator().manual_seed(3)
    x, residual = (torch.randn(33, 48, generator=drawn).to(dtype) for _ in range(2))
    weight = torch.rand(48, generator=drawn).to(dtype)
    [(providers, said)] = group.call("norms", x, residual, weight, 1e-5)
    assert providers == ["alignflow_cpu"] * 2
    total = x.double() + residual.double()
    for got, wanted in zip(said, (normed(x, weight), normed(total, weight), total), strict=True):
        assert got.dtype == dtype
        assert float((got.double() - wanted).abs().max()) < error
    # rows with gaps between them, which the kernel would misread
    [(providers, said)] = group.call("norms", x[:, ::2], residual[:, ::2], weight[::2], 1e-5)
    assert providers == ["native"] * 2
    torch.testing.assert_close(
        said[0].double(), normed(x[:, ::2], weight[::2]), atol=error, rtol=0.0
    )
    # rows that are no whole number of the kernel's vectors, which it refuses
    odd = [part[:, :36].contiguous() for part in (x, residual)]
    [(providers, _)] = group.call("norms", *odd, weight[:36].contiguous(), 1e-5)
    assert providers == ["native"] * 2


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
