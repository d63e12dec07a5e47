"""A placement plan (alignment.planning.placement) granted by Ray, all of it or nothing."""

import logging
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from alignment.errors import ClusterError
from alignment.planning.placement import NodeCapacity as NodeCapacity
from alignment.planning.placement import Placement as Placement
from alignment.planning.placement import number_text
from alignment.planning.placement import plan_placement as plan_placement

LOGGER = logging.getLogger(__name__)


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
        _give_back(self._group)


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
                f"{number_text(sum(b.cpus for b in placement.bundles))} CPUs wanted, "
                f"{number_text(free.get('GPU', 0.0))} and "
                f"{number_text(free.get('CPU', 0.0))} free; something else uses the "
                "cluster: wait for it, or raise `cluster.start_timeout_s`"
            )
    except BaseException:
        _give_back(group)
        raise
    return ReservedPlacement(placement, group)


def _give_back(group: Any) -> None:
    """A head that ended took its reservations along, and one that took its place has none."""
    try:
        remove_placement_group(group)
    except RayError as error:
        LOGGER.warning("a reservation was not given back, Ray was lost: %s", error)
