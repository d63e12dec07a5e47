"""Which role gets which processors: a plan first, refused with numbers, then Ray's group."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from alignment.errors import ClusterError
from alignment.role_specs import GeneratorSpec, RoleSpec, TrainableSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCapacity:
    """What one machine has to give."""

    gpus: float
    cpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What one rank of one role holds: whole GPUs of one machine, and a share of CPUs."""

    role: str
    rank: int
    gpus: int
    cpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One bundle a rank, in the order of the specs and of the ranks."""

    bundles: tuple[Bundle, ...]

    def indices(self, role: str) -> list[int]:
        """Where the role's bundles are, by rank."""
        return [index for index, bundle in enumerate(self.bundles) if bundle.role == role]


def plan_placement(specs: Sequence[RoleSpec], nodes: Sequence[NodeCapacity]) -> Placement:
    """One bundle for every rank, checked against the machines.

    Raises:
        ClusterError: the roles do not fit (gives the numbers), two share a name, or a policy and
            its rollout engines are not on the same kind of processor.
    """
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise ClusterError(f"role names must differ; got {', '.join(names)}")
    bundles = tuple(
        Bundle(
            role=spec.name,
            rank=rank,
            gpus=spec.resources.gpus_per_rank,
            cpus=spec.resources.cpus_per_rank,
        )
        for spec in specs
        for rank in range(spec.resources.ranks)
    )
    _check_weight_path(specs)
    _check_total(bundles, nodes)
    _check_packing(bundles, nodes)
    return Placement(bundles=bundles)


def _check_weight_path(specs: Sequence[RoleSpec]) -> None:
    """Weights go from GPU to GPU or from memory to memory, never across."""
    policies = [s for s in specs if isinstance(s, TrainableSpec) and s.kind == "language"]
    generators = [s for s in specs if isinstance(s, GeneratorSpec)]
    for policy in policies:
        for generator in generators:
            if bool(policy.resources.gpus_per_rank) != bool(generator.resources.gpus_per_rank):
                raise ClusterError(
                    f"{policy.name} has {policy.resources.gpus_per_rank} GPUs a rank and "
                    f"{generator.name} has {generator.resources.gpus_per_rank}: weights travel "
                    "from GPU to GPU or from memory to memory; set `gpus_per_rank` of both, or "
                    "of neither"
                )


def _check_total(bundles: Sequence[Bundle], nodes: Sequence[NodeCapacity]) -> None:
    for unit, setting in (("gpus", "gpus_per_rank"), ("cpus", "cpus_per_rank")):
        available = sum(getattr(node, unit) for node in nodes)
        wanted = _wanted_by_role(bundles, unit)
        total = sum(wanted.values())
        if total > available + 1e-9:
            sums = " + ".join(f"{role} {_number(n)}" for role, n in wanted.items() if n)
            raise ClusterError(
                f"{sums} = {_number(total)} {unit.upper()[:-1]}s wanted, {_number(available)} in "
                f"the cluster; lower `ranks` or `{setting}` in `[cluster]`, or add machines"
            )


def _check_packing(bundles: Sequence[Bundle], nodes: Sequence[NodeCapacity]) -> None:
    """First fit, largest first: a rank's GPUs must be on one machine."""
    free = [[node.gpus, node.cpus] for node in nodes]
    for bundle in sorted(bundles, key=lambda b: (-b.gpus, -b.cpus)):
        for node in free:
            if node[0] >= bundle.gpus and node[1] >= bundle.cpus - 1e-9:
                node[0] -= bundle.gpus
                node[1] -= bundle.cpus
                break
        else:
            left = ", ".join(f"{_number(g)} GPUs + {_number(c)} CPUs" for g, c in free)
            raise ClusterError(
                f"{bundle.role} rank {bundle.rank} wants {bundle.gpus} GPUs and "
                f"{_number(bundle.cpus)} CPUs on one machine; with the larger ranks placed, the "
                f"machines have {left} left; lower `cluster.{bundle.role}.gpus_per_rank` or "
                "`cpus_per_rank`"
            )


def _wanted_by_role(bundles: Sequence[Bundle], unit: str) -> dict[str, float]:
    wanted: dict[str, float] = {}
    for bundle in bundles:
        wanted[bundle.role] = wanted.get(bundle.role, 0.0) + getattr(bundle, unit)
    return wanted


def _number(value: float) -> str:
    return f"{round(value, 3):g}"


def cluster_nodes() -> list[NodeCapacity]:
    """The machines of the connected Ray cluster."""
    return [
        NodeCapacity(gpus=node["Resources"].get("GPU", 0.0), cpus=node["Resources"].get("CPU", 0.0))
        for node in ray.nodes()
        if node["Alive"]
    ]


class ReservedPlacement:
    """A placement that Ray has granted, all of it or nothing."""

    def __init__(self, placement: Placement, group: Any) -> None:
        self.placement = placement
        self._group = group

    def actor_options(self, role: str) -> list[dict[str, Any]]:
        """Ray options for the role's actors, by rank."""
        return [
            {
                "num_cpus": self.placement.bundles[index].cpus,
                "num_gpus": self.placement.bundles[index].gpus,
                "scheduling_strategy": PlacementGroupSchedulingStrategy(
                    placement_group=self._group, placement_group_bundle_index=index
                ),
            }
            for index in self.placement.indices(role)
        ]

    def release(self) -> None:
        """Give everything back; actors still in it are ended by Ray."""
        remove_placement_group(self._group)


def reserve_placement(placement: Placement, *, timeout_s: float) -> ReservedPlacement:
    """Wait until Ray grants the placement.

    Raises:
        ClusterError: not within `timeout_s`; says what is wanted and what is free.
    """
    bundles = [{"CPU": b.cpus} | ({"GPU": b.gpus} if b.gpus else {}) for b in placement.bundles]
    group = placement_group(bundles, strategy="PACK")
    try:
        granted = group.wait(timeout_s)
        if not granted:
            free = ray.available_resources()
            raise ClusterError(
                f"no room for {', '.join(dict.fromkeys(b.role for b in placement.bundles))} after "
                f"{timeout_s:g} s: {sum(b.gpus for b in placement.bundles)} GPUs and "
                f"{_number(sum(b.cpus for b in placement.bundles))} CPUs wanted, "
                f"{_number(free.get('GPU', 0.0))} and {_number(free.get('CPU', 0.0))} free; "
                "something else uses the cluster: wait for it, or raise `cluster.start_timeout_s`"
            )
    except BaseException:
        remove_placement_group(group)
        raise
    return ReservedPlacement(placement, group)
