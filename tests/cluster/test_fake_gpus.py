"""Placement on a cluster that believes in 8 GPUs: which processes see which."""

from dataclasses import replace
from pathlib import Path

import pytest
import ray
from role_factory import trainable_spec

from alignment.cluster.placement import cluster_nodes, plan_placement, reserve_placement
from alignment.cluster.session import Cluster
from alignment.config import RoleResources
from alignment.errors import ClusterError
from alignment.role_specs import FrozenSpec, GeneratorSpec
from alignment.training.side_by_side import lanes_of

pytestmark = pytest.mark.engines


def test_every_process_has_its_own_gpus(cluster: Cluster, tiny_model: Path) -> None:
    one = RoleResources(gpus_per_rank=1, cpus_per_rank=0.1)
    specs = [
        replace(trainable_spec("actor", tiny_model), resources=replace_ranks(one, 2)),
        replace(trainable_spec("value", tiny_model, kind="value"), resources=one),
        FrozenSpec(name="frozen", kind="language", model_folder=tiny_model, resources=one),
        FrozenSpec(name="scorer", kind="value", model_folder=tiny_model, resources=one),
        GeneratorSpec(
            name="sampler",
            model_folder=tiny_model,
            max_sequence_tokens=64,
            resources=RoleResources(gpus_per_rank=2, cpus_per_rank=0.1),
        ),
    ]
    reserved = reserve_placement(plan_placement(specs, cluster_nodes()), timeout_s=30)
    groups = [cluster._create_actors(spec, specs, reserved) for spec in specs]
    try:
        described = {group.role: group.call("describe") for group in groups}
        for group in groups:
            group.remember_processes(described[group.role])
        with pytest.raises(ClusterError, match=r"frozen rank 0 was given GPU \d, but torch"):
            groups[2].call("start")
        with pytest.raises(ClusterError, match=r"no room for late after 1 s: 2 GPUs .* 1 and "):
            _reserve_two_more(tiny_model)
    finally:
        for group in groups:
            group.end("the test is over")
        reserved.release()
    seen = {
        (role, facts["rank"]): facts["cuda_visible_devices"].split(",")
        for role, ranks in described.items()
        for facts in ranks
    }
    assert len(seen) == 6
    assert len(seen["sampler", 0]) == 2
    gpus = [gpu for visible in seen.values() for gpu in visible]
    assert len(gpus) == len(set(gpus)) == 7
    devices = [group.devices or frozenset() for group in groups]
    assert [len(own) for own in devices] == [2, 1, 1, 1, 2]
    assert lanes_of(devices) == [[0], [1], [2], [3], [4]]


def test_what_does_not_fit_the_cluster_is_refused_before_anything_starts(
    cluster: Cluster, tiny_model: Path
) -> None:
    spec = replace(
        trainable_spec("actor", tiny_model), resources=RoleResources(ranks=9, gpus_per_rank=1)
    )
    with pytest.raises(ClusterError, match="actor 9 = 9 GPUs wanted, 8 in the cluster"):
        cluster.start_roles([spec])
    assert "actor" not in cluster._roles


def replace_ranks(resources: RoleResources, ranks: int) -> RoleResources:
    return resources.model_copy(update={"ranks": ranks})


def _reserve_two_more(folder: Path) -> None:
    assert ray.cluster_resources()["GPU"] == 8
    late = FrozenSpec(
        name="late",
        kind="value",
        model_folder=folder,
        resources=RoleResources(gpus_per_rank=2, cpus_per_rank=0.1),
    )
    reserve_placement(plan_placement([late], cluster_nodes()), timeout_s=1)
