"""A cluster for the length of one stage: start roles on it, and leave nothing behind."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from alignment.cluster.carried_folders import CarriedFolder, Carrier
from alignment.cluster.failures import lost_ray_named
from alignment.cluster.frozen import FrozenActor
from alignment.cluster.generator import GeneratorActor
from alignment.cluster.groups import ActorGroup, Deadline, wait_for_all
from alignment.cluster.placement import (
    ReservedPlacement,
    cluster_nodes,
    plan_placement,
    reserve_placement,
)
from alignment.cluster.processes import EngineName, actor_environment
from alignment.cluster.roles import (
    RemoteGenerator,
    RemotePolicy,
    RemoteReference,
    RemoteRewardModel,
    RemoteRole,
    RemoteValueTrainable,
    SharedReference,
)
from alignment.cluster.runtime import ray_runtime
from alignment.cluster.trainable import TrainableActor
from alignment.code_digest import require_same_code
from alignment.config import ClusterConfig
from alignment.errors import ClusterError
from alignment.role_specs import (
    FrozenSpec,
    GeneratorSpec,
    RoleSpec,
    TrainableSpec,
    is_side_by_side,
    keeps_memory,
    shares_with,
    threads_of,
)


class Cluster:
    """Roles on Ray actors. Use `Cluster.open`; roles live until it closes or they are stopped."""

    def __init__(
        self, config: ClusterConfig, *, logs: Path, shared_store: str | None = None
    ) -> None:
        self.config = config
        self.logs = logs
        self._carrier = (
            Carrier(shared_store)
            if shared_store is not None and not config.store_is_shared
            else None
        )
        self._roles: dict[str, RemoteRole] = {}
        self._reserved: list[tuple[ReservedPlacement, set[str]]] = []

    @classmethod
    @contextmanager
    def open(
        cls, config: ClusterConfig, *, log_folder: Path, shared_store: str | None = None
    ) -> Iterator["Cluster"]:
        """A private Ray, or the one at `config.address`, and on exit nothing of ours left on it.

        Args:
            config: the `[cluster]` settings.
            log_folder: gets a folder `ray` with every actor's output (private Ray only).
            shared_store: `s3://bucket/prefix` that every machine reaches, by which folders travel
                where there are several machines and `config.store_is_shared` is off.
        """
        with ray_runtime(config, log_folder=log_folder) as logs:
            cluster = cls(config, logs=logs, shared_store=shared_store)
            try:
                yield cluster
            finally:
                cluster.stop_roles(list(cluster._roles))

    @property
    def scratch(self) -> Path:
        """Ray's session folder on this machine; a private Ray removes it when it ends."""
        return self.logs.resolve().parent

    @property
    def node_count(self) -> int:
        """Machines of the cluster that are alive."""
        return len(cluster_nodes())

    def start_roles(self, specs: Sequence[RoleSpec]) -> dict[str, Any]:
        """Start roles side by side and wait until all are ready; returns them by name.

        Raises:
            ClusterError: they do not fit, or one does not start within `start_timeout_s`.
            AbsentClusterError: Ray's head ended meanwhile.
            AlignmentError: what a role itself had to say, e.g. ModelError for its folder.
        """
        specs = [replace(spec, model_folder=spec.model_folder.absolute()) for spec in specs]
        taken = [spec.name for spec in specs if spec.name in self._roles]
        if taken:
            raise ClusterError(f"role {taken[0]} is running already; stop it first")
        with lost_ray_named(f"starting {', '.join(spec.name for spec in specs)}"):
            reserved, groups, carrier = self._start_groups(specs)
        started = {
            spec.name: _proxy(spec, groups[shares_with(spec) or spec.name], carrier)
            for spec in specs
        }
        self._roles |= started
        self._reserved.append((reserved, set(started)))
        return dict(started)

    def _start_groups(
        self, specs: Sequence[RoleSpec]
    ) -> tuple[ReservedPlacement, dict[str, ActorGroup], Carrier | None]:
        nodes = cluster_nodes()
        carrier = self._carrier if len(nodes) > 1 else None
        placement = plan_placement(specs, nodes)
        own = [spec for spec in specs if shares_with(spec) is None]
        models = {spec.name: carrier.model(spec.model_folder) for spec in own} if carrier else {}
        reserved = reserve_placement(placement, timeout_s=self.config.start_timeout_s)
        groups: dict[str, ActorGroup] = {}
        try:
            for spec in own:
                groups[spec.name] = self._create_actors(spec, specs, reserved)
            self._start_engines(own, groups, models)
        except BaseException:
            for group in groups.values():
                group.end("a role did not start")
            reserved.release()
            raise
        return reserved, groups, carrier

    def stop_roles(self, names: Iterable[str]) -> None:
        """End roles and give their processors back (together: when all started with them end)."""
        for name in set(names) & set(self._roles):
            self._roles.pop(name).end("the role was stopped")
        for reserved, alive in list(self._reserved):
            alive &= set(self._roles)
            if not alive:
                reserved.release()
                self._reserved.remove((reserved, alive))

    def _create_actors(
        self, spec: RoleSpec, together: Sequence[RoleSpec], reserved: ReservedPlacement
    ) -> ActorGroup:
        gpus, threads = spec.resources.gpus_per_rank, threads_of(spec, together, self.config)
        environment = actor_environment(
            _engine_of(spec), threads=threads, gpus=gpus, scratch=self.scratch
        )
        actors = [
            ray.remote(_actor_class(spec))
            .options(
                **options,
                max_restarts=0,
                max_task_retries=0,
                runtime_env={"env_vars": environment},
            )
            .remote(*self._actor_arguments(spec, together), rank=rank)
            for rank, options in enumerate(reserved.actor_options(spec.name))
        ]
        return ActorGroup(
            spec.name,
            actors,
            call_timeout_s=self.config.call_timeout_s,
            logs=self.logs,
            gpus_per_rank=gpus,
            side_by_side=is_side_by_side(together, self.config),
        )

    def _actor_arguments(self, spec: RoleSpec, together: Sequence[RoleSpec]) -> tuple[Any, ...]:
        if isinstance(spec, GeneratorSpec):
            return spec, self.config
        if isinstance(spec, TrainableSpec):
            return spec, self.config.call_timeout_s, keeps_memory(spec, together, self.config)
        return (spec,)

    def _start_engines(
        self,
        specs: Sequence[RoleSpec],
        groups: dict[str, ActorGroup],
        models: Mapping[str, CarriedFolder],
    ) -> None:
        """All side by side: the slowest role decides how long it takes.

        `models` are those that the roles cannot read from the driver's disk.
        """
        deadline = Deadline.after(self.config.start_timeout_s, "start_timeout_s")
        described = {n: g.submit("describe", [()] * len(g)) for n, g in groups.items()}
        fetched = [
            groups[name].submit("take_model", [(model,)] * len(groups[name]))
            for name, model in models.items()
        ]
        meetings = {
            spec.name: groups[spec.name].submit("open_meeting_point", [()])
            for spec in specs
            if isinstance(spec, TrainableSpec)
        }
        started = [
            group.submit("start", [()] * len(group))
            for name, group in groups.items()
            if name not in meetings
        ]
        wait_for_all([*described.values(), *fetched, *meetings.values()], deadline)
        for name, group in groups.items():
            facts = described[name].wait(deadline)
            group.remember_processes(facts)
            for rank, told in enumerate(facts):
                require_same_code(told["code"], f"{name} rank {rank} on {told['host']}")
        for name, meeting in meetings.items():
            [point] = meeting.wait(deadline)
            started.append(groups[name].submit("start", [(point,)] * len(groups[name])))
        wait_for_all(started, deadline)


def _actor_class(spec: RoleSpec) -> type[Any]:
    if isinstance(spec, TrainableSpec):
        return TrainableActor
    return FrozenActor if isinstance(spec, FrozenSpec) else GeneratorActor


def _engine_of(spec: RoleSpec) -> EngineName:
    if isinstance(spec, TrainableSpec):
        return "deepspeed"
    return "torch" if isinstance(spec, FrozenSpec) else "vllm"


def _proxy(spec: RoleSpec, group: ActorGroup, carrier: Carrier | None) -> RemoteRole:
    if isinstance(spec, GeneratorSpec):
        return RemoteGenerator(group, carrier)
    if isinstance(spec, FrozenSpec):
        if spec.adapter_off is not None:
            return SharedReference(group, spec)
        return RemoteReference(group) if spec.kind == "language" else RemoteRewardModel(group)
    trainable = RemotePolicy if spec.kind == "language" else RemoteValueTrainable
    return trainable(group, carrier)
