"""The engines of a run: started when the first stage needs them, closed when the run ends.

A run that reuses every stage never imports Ray.
"""

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from alignment.config import ClusterConfig
from alignment.errors import ClusterError
from alignment.role_specs import RoleSpec
from flows.memory import MemorySampler
from flows.summary import Actor
from flows.timing import WorkClock


class Engines:
    """Starts roles for a stage on the configured backend, and remembers which actors held them."""

    def __init__(
        self,
        config: ClusterConfig,
        *,
        clock: WorkClock,
        memory: MemorySampler,
        logs: Path,
        shared_store: str | None = None,
    ) -> None:
        self.config = config
        self.shared_store = shared_store
        self.clock = clock
        self.memory = memory
        self.logs = logs
        self.actors: list[Actor] = []
        """Of the stage being worked on; `take_actors` hands them over."""
        self.versions: dict[str, str] = {}
        self._open = ExitStack()
        self._cluster: Any = None

    @contextmanager
    def roles(self, specs: Sequence[RoleSpec]) -> Iterator[dict[str, Any]]:
        """The specs' roles, started together; stopped when the block ends, however it ends."""
        with self.clock.phase("model_start"):
            roles = self._start(specs)
            for role in roles.values():
                self._watch(role)
        try:
            yield roles
            for role in roles.values():
                self._remember(role)
        finally:
            if self._cluster is not None:
                self._cluster.stop_roles(list(roles))

    def weights_of(self, folder: Path) -> Any:
        """Weights of a saved language model, as this backend's generator takes them."""
        if self.config.backend == "local":
            from alignment.models.loading import load_language_model

            return dict(load_language_model(folder).named_weights())
        from alignment.cluster import weights_from_folder

        return weights_from_folder(folder)

    def take_actors(self) -> list[Actor]:
        """The actors that worked since the last call."""
        actors, self.actors = self.actors, []
        return actors

    def close(self) -> None:
        """End everything that was started; safe to call twice."""
        self._open.close()
        self._cluster = None

    def _start(self, specs: Sequence[RoleSpec]) -> dict[str, Any]:
        if self.config.backend == "local":
            from alignment.roles_local import start_roles

            return start_roles(specs)
        if self._cluster is None:
            from alignment.cluster import Cluster

            self._cluster = self._open.enter_context(
                Cluster.open(self.config, log_folder=self.logs, shared_store=self.shared_store)
            )
            refusal = why_no_several_machines(
                self.config, self._cluster.node_count, self.shared_store
            )
            if refusal is not None:
                raise ClusterError(refusal)
        roles: dict[str, Any] = self._cluster.start_roles(specs)
        return roles

    def _watch(self, role: Any) -> None:
        for actor in role.describe():
            if actor.get("host", "") not in ("", socket.gethostname()):
                continue  # the number may be another process's here
            self.memory.watch(f"{actor['role']}-{actor['rank']}", actor["pid"])

    def _remember(self, role: Any) -> None:
        for actor in role.describe():
            self.versions.update({name: actor[name] for name in ENGINES if name in actor})
            self.actors.append(
                Actor(
                    role=actor["role"],
                    rank=actor["rank"],
                    pid=actor["pid"],
                    host=actor.get("host", ""),
                    engine=actor["engine"],
                    steps=actor.get("steps", 0),
                    policy_versions=tuple(actor.get("policy_versions", ())),
                )
            )


def why_no_several_machines(
    config: ClusterConfig, machines: int, shared_store: str | None = None
) -> str | None:
    """Why roles cannot be spread over so many machines; None if they can."""
    if machines <= 1 or config.store_is_shared or shared_store is not None:
        return None
    return (
        f"the cluster has {machines} machines, and roles on each read models from the store and "
        "write checkpoints there: name a place on S3 as `run.shared_store`, by which both travel, "
        "or put `run.store` and `run.runs` on a file system that all of them see at the same path "
        "and say so with `cluster.store_is_shared = true`, or use one machine"
    )


ENGINES = ("ray", "deepspeed", "vllm")
