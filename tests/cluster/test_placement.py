"""The placement plan: fits, or is refused with the numbers."""

from pathlib import Path
from typing import Any

import pytest
from role_factory import trainable_spec

from alignment.cluster.placement import NodeCapacity, plan_placement
from alignment.config import RoleResources
from alignment.errors import ClusterError
from alignment.role_specs import FrozenSpec, GeneratorSpec, RoleSpec


def role(name: str, **resources: Any) -> RoleSpec:
    return FrozenSpec(
        name=name, kind="value", model_folder=Path(name), resources=RoleResources(**resources)
    )


def engines(**resources: Any) -> RoleSpec:
    return GeneratorSpec(
        name="generator",
        model_folder=Path("generator"),
        max_sequence_tokens=64,
        resources=RoleResources(**resources),
    )


EIGHT = [NodeCapacity(gpus=8, cpus=16)]


def test_every_rank_gets_its_own_bundle() -> None:
    placement = plan_placement(
        [role("policy", ranks=4, gpus_per_rank=1), engines(ranks=2, gpus_per_rank=2)], EIGHT
    )
    assert [(b.role, b.rank, b.gpus) for b in placement.bundles] == [
        ("policy", 0, 1),
        ("policy", 1, 1),
        ("policy", 2, 1),
        ("policy", 3, 1),
        ("generator", 0, 2),
        ("generator", 1, 2),
    ]
    assert placement.indices("generator") == [4, 5]


def test_too_many_gpus_are_refused_with_the_sum() -> None:
    specs = [
        role("policy", ranks=4, gpus_per_rank=1),
        role("critic", ranks=2, gpus_per_rank=1),
        role("reference", gpus_per_rank=1),
        role("reward_model"),
        engines(gpus_per_rank=2),
    ]
    with pytest.raises(ClusterError) as refusal:
        plan_placement(specs, EIGHT)
    expected = "policy 4 + critic 2 + reference 1 + generator 2 = 9 GPUs wanted, 8 in the cluster"
    assert expected in str(refusal.value)


def test_too_many_cpus_are_refused_with_the_sum() -> None:
    with pytest.raises(ClusterError, match=r"policy 1\.5 \+ critic 1 = 2\.5 CPUs wanted, 2 in"):
        plan_placement(
            [role("policy", ranks=3, cpus_per_rank=0.5), role("critic", cpus_per_rank=1)],
            [NodeCapacity(gpus=0, cpus=2)],
        )


def test_shares_of_a_cpu_add_up_without_rounding_errors() -> None:
    plan_placement(
        [role(f"r{i}", cpus_per_rank=0.2) for i in range(10)], [NodeCapacity(gpus=0, cpus=2)]
    )


def test_the_gpus_of_a_rank_must_be_on_one_machine() -> None:
    nodes = [NodeCapacity(gpus=4, cpus=8), NodeCapacity(gpus=4, cpus=8)]
    plan_placement([engines(ranks=2, gpus_per_rank=4)], nodes)
    with pytest.raises(ClusterError, match=r"generator rank 0 wants 6 GPUs .* on one machine"):
        plan_placement([engines(gpus_per_rank=6)], nodes)


def test_ranks_that_only_fit_in_the_right_order_fit() -> None:
    nodes = [NodeCapacity(gpus=3, cpus=8), NodeCapacity(gpus=2, cpus=8)]
    specs = [role("policy", ranks=2, gpus_per_rank=1), engines(gpus_per_rank=3)]
    plan_placement(specs, nodes)


def test_a_policy_and_its_engines_are_on_the_same_kind_of_processor() -> None:
    policy = trainable_spec("policy", Path("policy"))
    plan_placement([policy, engines()], EIGHT)
    with pytest.raises(ClusterError, match="policy has 0 GPUs a rank and generator has 2"):
        plan_placement([policy, engines(gpus_per_rank=2)], EIGHT)


def test_role_names_must_differ() -> None:
    with pytest.raises(ClusterError, match="names must differ; got policy, policy"):
        plan_placement([role("policy"), role("policy")], EIGHT)
