"""A policy with adapters on DeepSpeed: its rollouts, its reference, its exported folder."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from role_factory import negative_logprob, random_batch, random_prompts, trainable_spec

from alignment.cluster import Cluster
from alignment.cluster.roles import RemotePolicy
from alignment.config import LoRAConfig
from alignment.errors import ClusterError
from alignment.experience import Sampling
from alignment.role_specs import FrozenSpec, RoleSpec
from alignment.roles_local import start_roles as start_local_roles
from alignment.training.roles import PPORoles

pytestmark = pytest.mark.engines


def specs(folder: Path, **changes: Any) -> list[RoleSpec]:
    return [
        replace(trainable_spec("adapted", folder, lora=LoRAConfig(r=4)), temperature=0.7),
        FrozenSpec(
            name="base", kind="language", model_folder=folder, adapter_off="adapted", **changes
        ),
    ]


@pytest.fixture(scope="module")
def adapted(cluster: Cluster, tiny_model: Path) -> Iterator[dict[str, Any]]:
    roles = cluster.start_roles(specs(tiny_model))
    train(roles["adapted"])
    yield roles
    cluster.stop_roles(list(roles))


def train(policy: RemotePolicy) -> None:
    for seed in range(3):
        batch = random_batch(6, seed=seed)
        tokens = float(batch.response_mask.sum())
        policy.forward_backward(batch, negative_logprob, denominator=tokens)
        policy.step()


def test_the_shared_reference_is_a_separate_one_to_the_bit(
    adapted: dict[str, Any], ppo_roles: PPORoles
) -> None:
    policy, base = adapted["adapted"], adapted["base"]
    batch = random_batch(9, seed=7)
    before = policy.logprobs(batch)
    expected = ppo_roles.reference.logprobs(batch)
    assert torch.equal(base.logprobs(batch), expected)
    assert float((before - expected).abs().max()) > 0.05
    assert torch.equal(policy.logprobs(batch), before)
    assert base.describe() == []
    policy.forward_backward(batch, negative_logprob, denominator=100.0)
    policy.step()
    assert not torch.equal(policy.logprobs(batch), before), "adapters must still be trained"


def test_rollouts_and_exports_are_those_of_the_merged_weights(
    adapted: dict[str, Any], ppo_roles: PPORoles, tiny_model: Path, tmp_path: Path
) -> None:
    policy, generator = adapted["adapted"], ppo_roles.generator
    generator.load_weights(policy.weights(), version=11)
    prompts = random_prompts(6, tokens=140, seed=3)
    sampling = Sampling(max_response_tokens=64, temperature=0.7)
    rollout = generator.generate(prompts, sampling, seeds=range(6))
    mask = rollout.response_mask
    trainer, base = policy.logprobs(rollout), adapted["base"].logprobs(rollout)
    assert float((trainer - rollout.sampling_logprobs)[mask].abs().max()) < 1e-4
    assert float((base - trainer)[mask].abs().max()) > 0.05

    policy.export(tmp_path / "policy")
    merged = FrozenSpec(
        name="r", kind="language", model_folder=tmp_path / "policy", temperature=0.7
    )
    said = start_local_roles([merged])["r"].logprobs(rollout)
    torch.testing.assert_close(said, trainer, atol=1e-5, rtol=0)


def test_stopping_the_reference_leaves_the_policy_alone(
    cluster: Cluster, adapted: dict[str, Any]
) -> None:
    cluster._roles["base"].end("only the name goes")
    assert adapted["adapted"].describe()[0]["engine"] == "DeepSpeedEngine"


def test_a_reference_that_is_not_the_policys_base_is_refused(
    cluster: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    policy, base = (replace(spec, name=f"other-{spec.name}") for spec in specs(tiny_model))
    base = replace(base, adapter_off=policy.name)
    plain = trainable_spec(policy.name, tiny_model)
    for given, complaint in (
        ([base], "other-adapted is not started with it"),
        ([plain, base], "other-adapted is trained without LoRA"),
        ([policy, replace(base, model_folder=tmp_path)], "other-adapted with its adapters off is"),
    ):
        with pytest.raises(ClusterError, match=complaint):
            cluster.start_roles(given)
