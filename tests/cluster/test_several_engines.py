"""Rollout engines side by side: prompts shared among them, one answer as of one engine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from role_factory import negative_logprob, random_batch, random_prompts

from alignment.cluster import Cluster
from alignment.cluster.roles import RemoteGenerator
from alignment.config import RoleResources
from alignment.experience import Rollout, Sampling
from alignment.role_specs import GeneratorSpec
from alignment.training.roles import PPORoles

pytestmark = pytest.mark.engines

PROMPTS = random_prompts(5, tokens=20, seed=12)
SAMPLING = Sampling(max_response_tokens=24)


@pytest.fixture(scope="module")
def engines(cluster: Cluster, tiny_model: Path) -> Iterator[RemoteGenerator]:
    spec = GeneratorSpec(
        name="engines",
        model_folder=tiny_model,
        max_sequence_tokens=512,
        resources=RoleResources(ranks=2),
    )
    roles = cluster.start_roles([spec])
    yield roles["engines"]
    cluster.stop_roles(list(roles))


def same(one: Rollout, other: Rollout) -> bool:
    if not torch.equal(one.token_ids, other.token_ids):
        return False
    return float((one.sampling_logprobs - other.sampling_logprobs).abs().max()) < 1e-5


def test_two_engines_answer_as_one_does_with_each_version(
    engines: RemoteGenerator, ppo_roles: PPORoles
) -> None:
    policy, one = ppo_roles.policy, ppo_roles.generator
    rollouts = []
    for version in (21, 22):
        sent = policy.weights()
        one.load_weights(sent, version=version)
        engines.load_weights(sent, version=version)
        assert [rank["policy_version"] for rank in engines.describe()] == [version] * 2
        for count in (5, 1):  # a single prompt leaves the second engine without work
            seeds = range(100, 100 + count)
            expected = one.generate(PROMPTS[:count], SAMPLING, seeds=seeds)
            rollout = engines.generate(PROMPTS[:count], SAMPLING, seeds=seeds)
            assert same(rollout, expected)
            assert rollout.policy_version.tolist() == [version] * count
        rollouts.append(engines.generate(PROMPTS, SAMPLING, seeds=range(5)))
        policy.forward_backward(random_batch(6, seed=1), negative_logprob, denominator=50.0)
        policy.step()
    assert not same(*rollouts)
    assert all(rank["policy_versions"] == [21, 22] for rank in engines.describe())


def test_what_was_begun_keeps_the_weights_of_its_beginning(
    engines: RemoteGenerator, ppo_roles: PPORoles
) -> None:
    policy = ppo_roles.policy
    engines.load_weights(policy.weights(), version=31)
    begun = engines.begin(PROMPTS, SAMPLING, seeds=range(5))
    policy.forward_backward(random_batch(6, seed=2), negative_logprob, denominator=50.0)
    policy.step()
    engines.load_weights(policy.weights(), version=32)
    rollout = begun.wait()
    assert rollout.policy_version.tolist() == [31] * 5
    now = engines.generate(PROMPTS, SAMPLING, seeds=range(5))
    assert now.policy_version.tolist() == [32] * 5
    assert not same(now, rollout)
