"""`cluster.side_by_side`: roles that start together on one CPU, each on half of the threads."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from role_factory import random_batch, trainable_spec

from alignment.cluster import Cluster
from alignment.config import ClusterConfig, PipelineConfig, RoleResources
from alignment.role_specs import (
    FrozenSpec,
    GeneratorSpec,
    RoleSpec,
    TrainableSpec,
    is_side_by_side,
    keeps_memory,
    threads_of,
)
from alignment.training.roles import PPORoles
from alignment.training.side_by_side import lanes_of

BOTH = ClusterConfig(side_by_side=True, threads=8)


def specs(folder: Path = Path("model")) -> list[RoleSpec]:
    return [
        trainable_spec("first", folder),
        trainable_spec("second", folder, kind="value"),
        FrozenSpec(name="third", kind="language", model_folder=folder),
    ]


def test_model_roles_get_half_of_the_threads_and_the_engine_all() -> None:
    engine = GeneratorSpec(name="generator", model_folder=Path("model"), max_sequence_tokens=8)
    together = [*specs(), engine]
    assert [threads_of(spec, together, BOTH) for spec in together] == [4, 4, 4, 8]
    in_turn = BOTH.model_copy(update={"side_by_side": False})
    assert [threads_of(spec, together, in_turn) for spec in together] == [8] * 4
    one = BOTH.model_copy(update={"threads": 1})
    assert [threads_of(spec, together, one) for spec in together] == [1] * 4


def test_a_single_trained_role_keeps_all_threads() -> None:
    """Fine-tuning, or a policy without critic: half of the cores would be idle."""
    first, _, third = specs()
    assert not is_side_by_side([first, third], BOTH)
    assert threads_of(first, [first, third], BOTH) == 8


def test_only_a_policy_beside_others_keeps_what_it_freed() -> None:
    together = specs()
    assert [keeps_memory(spec, together, BOTH) for spec in together] == [True, False, False]
    in_turn = BOTH.model_copy(update={"side_by_side": False})
    assert not any(keeps_memory(spec, together, in_turn) for spec in together)


def test_roles_on_gpus_do_not_count() -> None:
    first, second, third = specs()
    assert isinstance(first, TrainableSpec)
    on_gpu = replace(first, resources=RoleResources(gpus_per_rank=1))
    assert not is_side_by_side([on_gpu, second, third], BOTH)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"cluster": {"backend": "local"}}, "cluster.backend"),
        ({"ppo": {"method": "rloo", "responses_per_prompt": 4}}, "has no critic"),
        ({"cluster": {"critic": {"gpus_per_rank": 1}}}, "on GPUs"),
        ({"ppo": {"update_kl_limit_nats": 0.1}}, "ppo.update_kl_limit_nats"),
    ],
)
def test_the_setting_is_refused_where_nothing_is_gained(
    settings: dict[str, Any], named: str
) -> None:
    PipelineConfig.model_validate(settings)
    cluster = settings.get("cluster", {}) | {"side_by_side": True}
    with pytest.raises(ValueError, match=rf"`cluster.side_by_side` gains nothing .*{named}"):
        PipelineConfig.model_validate(settings | {"cluster": cluster})


@pytest.fixture
def roles(cluster: Cluster, tiny_model: Path) -> Iterator[dict[str, Any]]:
    config = cluster.config.model_copy(update={"side_by_side": True, "threads": 2})
    own = Cluster(config, logs=cluster.logs)
    started = own.start_roles(specs(tiny_model))
    yield started
    own.stop_roles(list(started))


@pytest.mark.engines
def test_real_roles_have_their_threads_and_lanes_of_their_own(roles: dict[str, Any]) -> None:
    assert [role.describe()[0]["threads"] for role in roles.values()] == [1, 1, 1]
    assert lanes_of([role.devices for role in roles.values()]) == [[0], [1], [2]]


def keeps_a_pass(role: Any) -> bool:
    [actor] = role.group.actors
    kept: bool = ray.get(actor.__ray_call__.remote(lambda own: own._kept is not None))
    return kept


@pytest.mark.engines
def test_beside_the_policy_a_critic_keeps_its_first_pass_too(roles: dict[str, Any]) -> None:
    batch = random_batch(3, seed=1)
    policy, critic = roles["first"], roles["second"]
    policy.logprobs(batch, trained_next=True)
    critic.values(batch, trained_next=True)
    assert [keeps_a_pass(role) for role in (policy, critic)] == [True, True]
    policy.logprobs(batch)
    critic.values(batch)
    assert [keeps_a_pass(role) for role in (policy, critic)] == [False, False]


@pytest.mark.engines
def test_a_critic_that_waits_for_the_policy_keeps_nothing(ppo_roles: PPORoles) -> None:
    batch, critic = random_batch(3, seed=1), ppo_roles.critic
    assert critic is not None
    ppo_roles.policy.logprobs(batch, trained_next=True)
    critic.values(batch, trained_next=True)
    assert [keeps_a_pass(role) for role in (ppo_roles.policy, critic)] == [True, False]
    ppo_roles.policy.rest()
    assert not keeps_a_pass(ppo_roles.policy)


@pytest.mark.engines
def test_the_policy_keeps_the_memory_that_its_next_step_needs(roles: dict[str, Any]) -> None:
    def use_and_free(actor: Any) -> None:
        import torch

        torch.ones(50_000_000)  # 191 MiB

    given_back = []
    for role in (roles["first"], roles["second"]):
        [actor] = role.group.actors
        ray.get(actor.__ray_call__.remote(use_and_free))
        [working] = role.describe()
        role.rest()
        [resting] = role.describe()
        given_back.append(working["memory_mib"] - resting["memory_mib"])
    assert given_back[0] < 20
    assert given_back[1] > 150
