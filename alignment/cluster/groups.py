"""The actors of one role, called together: one answer a rank, or one error for all."""

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from alignment.cluster.connection import first_ready
from alignment.cluster.failures import explain_failures, explain_timeout
from alignment.cluster.leftovers import record_processes
from alignment.cluster.process_identity import ProcessIdentity, kill, state_of
from alignment.errors import ClusterError

GRACE_S = 5.0
"""How long to wait, after a rank failed, for its peers to say why."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment, and for the error message how long that was and which setting moves it."""

    limit_s: float
    setting: str
    ends_at: float

    @classmethod
    def after(cls, limit_s: float, setting: str) -> "Deadline":
        """`limit_s` seconds from now."""
        return cls(limit_s, setting, time.monotonic() + limit_s)

    def remaining_s(self) -> float:
        """Seconds left, not below 0."""
        return max(0.0, self.ends_at - time.monotonic())


@dataclass(frozen=True, slots=True)
class Call:
    """A call under way: one Ray reference a rank."""

    group: "ActorGroup"
    operation: str
    references: list[Any]

    def wait(self, deadline: Deadline) -> list[Any]:
        """The answers in rank order.

        Raises:
            AlignmentError: the first failing actor's own error.
            ClusterError: an actor died, failed otherwise, or did not answer in time. If some
                rank has not answered by then, the whole group is ended: its ranks share
                collectives, and one that waits for a lost peer would wait for ever.
            AbsentClusterError: Ray itself ended.
        """
        answers: dict[int, Any] = {}
        failures: dict[int, Exception] = {}
        waiting = {reference: rank for rank, reference in enumerate(self.references)}
        limit = deadline
        while waiting:
            ready, _ = first_ready(list(waiting), timeout_s=limit.remaining_s())
            if not ready:
                break
            rank = waiting.pop(ready[0])
            try:
                answers[rank] = ray.get(ready[0])
            except Exception as error:
                failures[rank] = error
                limit = min(limit, Deadline.after(GRACE_S, ""), key=Deadline.remaining_s)
        if failures or waiting:
            raise self.group.explain(self.operation, failures, sorted(waiting.values()), deadline)
        return [answers[rank] for rank in range(len(self.references))]


class ActorGroup:
    """N rank actors of one role."""

    def __init__(
        self,
        role: str,
        actors: Sequence[Any],
        *,
        call_timeout_s: float,
        logs: Path,
        gpus_per_rank: int = 0,
        side_by_side: bool = False,
    ) -> None:
        self.role = role
        self.actors = list(actors)
        self.logs = logs
        self.gpus_per_rank = gpus_per_rank
        self.side_by_side = side_by_side
        self._call_timeout_s = call_timeout_s
        self._pids: dict[int, int] = {}
        self._hosts: dict[int, str] = {}
        self._processes: dict[int, ProcessIdentity] = {}
        self._lost: str | None = None
        self.devices: frozenset[str] | None = None
        """GPUs of the ranks or, of ranks on CPUs, their hosts (there their own threads, if
        roles work side by side); None until they have told."""

    def __len__(self) -> int:
        return len(self.actors)

    def call(self, operation: str, *arguments: Any) -> list[Any]:
        """The same call on every rank, waited for."""
        return self.submit_to_all(operation, *arguments).wait(self.deadline())

    def call_each(self, operation: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Each rank's own arguments (or only the first ranks'), waited for; see `Call.wait`."""
        return self.submit(operation, arguments).wait(self.deadline())

    def deadline(self) -> Deadline:
        """How long a call may take that is waited for from now on."""
        return Deadline.after(self._call_timeout_s, "call_timeout_s")

    def submit_to_all(self, operation: str, *arguments: Any) -> Call:
        """Begin the same call on every rank."""
        return self.submit(operation, [arguments] * len(self.actors))

    def submit(self, operation: str, arguments: Sequence[tuple[Any, ...]]) -> Call:
        """Begin a call on the first `len(arguments)` ranks."""
        if self._lost is not None:
            raise ClusterError(f"{self.role} was ended after an earlier failure: {self._lost}")
        pairs = zip(self.actors, arguments, strict=False)
        references = [getattr(actor, operation).remote(*args) for actor, args in pairs]
        return Call(self, operation, references)

    def require_alive(self, operation: str) -> None:
        """Raise ClusterError, naming the rank and what it was doing, if one has died."""
        references = self.submit("describe", [()] * len(self)).references
        Call(self, operation, references).wait(self.deadline())

    def remember_processes(self, described: Sequence[dict[str, Any]]) -> None:
        """Keep the ranks' processes, so that a later death or halt can be named, and devices."""
        self.devices = frozenset(name for facts in described for name in self._devices_of(facts))
        self._pids = {rank: facts["pid"] for rank, facts in enumerate(described)}
        here = socket.gethostname()
        hosts = {rank: facts.get("host", here) for rank, facts in enumerate(described)}
        self._hosts = {rank: host for rank, host in hosts.items() if host != here}
        known = {rank: facts.get("process") for rank, facts in enumerate(described)}
        self._processes = {rank: process for rank, process in known.items() if process}
        record_processes(self.logs.resolve().parents[1], self._processes.values())

    def _devices_of(self, facts: dict[str, Any]) -> list[str]:
        """Roles on CPUs of one host share them, unless each has a part of the threads."""
        visible = facts.get("cuda_visible_devices", "") if self.gpus_per_rank else ""
        cpu = f"threads of {self.role}" if self.side_by_side else "CPU"
        named = [f"GPU {gpu}" for gpu in visible.split(",")] if visible else [cpu]
        return [f"{facts.get('host')} {device}" for device in named]

    def explain(
        self,
        operation: str,
        failures: dict[int, Exception],
        waiting: list[int],
        deadline: Deadline,
    ) -> Exception:
        """The error for a call that did not end well; ends the group if ranks still hang."""
        error: Exception
        if failures:
            error = explain_failures(
                self.role,
                operation,
                failures,
                pids=self._pids,
                hosts=self._hosts,
                logs=self.logs,
            )
        else:
            error = explain_timeout(
                self.role,
                operation,
                waiting,
                limit_s=deadline.limit_s,
                setting=deadline.setting,
                pids=self._pids,
                hosts=self._hosts,
                states={rank: state_of(process) for rank, process in self._processes.items()},
                logs=self.logs,
            )
        if waiting:
            self.end(str(error))
        return error

    def end(self, reason: str) -> None:
        """End every actor; later calls are refused with the reason."""
        self._lost = reason
        for actor in self.actors:
            ray.kill(actor, no_restart=True)
        for process in self._processes.values():
            if state_of(process) == "T":  # a stopped process cannot obey
                kill(process)


def wait_for_all(calls: Sequence[Call], deadline: Deadline) -> None:
    """Wait for calls on several groups; the first failure anywhere is raised at once."""
    owners = {reference: call for call in calls for reference in call.references}
    pending = list(owners)
    while pending:
        ready, pending = first_ready(pending, timeout_s=deadline.remaining_s())
        if not ready:
            owners[pending[0]].wait(deadline)  # raises: nothing is left of the deadline
        for reference in ready:
            try:
                ray.get(reference)
            except Exception:
                owners[reference].wait(deadline)
                raise
