"""The actors of one role, called together: one answer a rank, or one error for all."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from alignment.cluster.failures import explain_failures, explain_timeout
from alignment.errors import ClusterError

GRACE_S = 5.0
"""How long to wait, after a rank failed, for its peers to say why."""

Call = tuple[str, list[Any]]
"""An operation's name and one Ray reference a rank."""


class ActorGroup:
    """N rank actors of one role."""

    def __init__(
        self, role: str, actors: Sequence[Any], *, call_timeout_s: float, logs: Path
    ) -> None:
        self.role = role
        self.actors = list(actors)
        self.logs = logs
        self._call_timeout_s = call_timeout_s
        self._pids: dict[int, int] = {}
        self._lost: str | None = None

    def __len__(self) -> int:
        return len(self.actors)

    def call(self, operation: str, *arguments: Any) -> list[Any]:
        """The same call on every rank."""
        return self.call_each(operation, [arguments] * len(self.actors))

    def call_each(self, operation: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Each rank's own arguments; answers in rank order."""
        return self.wait(self.submit(operation, arguments))

    def submit(self, operation: str, arguments: Sequence[tuple[Any, ...]]) -> Call:
        """Begin a call; `arguments` may be for the first ranks only."""
        if self._lost is not None:
            raise ClusterError(f"{self.role} was ended after an earlier failure: {self._lost}")
        pairs = zip(self.actors, arguments, strict=False)
        return operation, [getattr(actor, operation).remote(*args) for actor, args in pairs]

    def wait(self, call: Call, *, timeout_s: float | None = None) -> list[Any]:
        """The answers of a call begun earlier.

        Raises:
            AlignmentError: the first failing actor's own error.
            ClusterError: an actor died, failed otherwise, or did not answer in time. If some
                rank has not answered by then, the whole group is ended: its ranks share
                collectives, and one that waits for a lost peer would wait for ever.
        """
        operation, references = call
        setting = "call_timeout_s" if timeout_s is None else "start_timeout_s"
        limit_s = self._call_timeout_s if timeout_s is None else timeout_s
        answers: dict[int, Any] = {}
        failures: dict[int, Exception] = {}
        deadline = time.monotonic() + limit_s
        waiting = dict(enumerate(references))
        while waiting:
            remaining = max(0.0, deadline - time.monotonic())
            ready, _ = ray.wait(list(waiting.values()), timeout=remaining)
            if not ready:
                break
            rank = next(r for r, reference in waiting.items() if reference == ready[0])
            del waiting[rank]
            try:
                answers[rank] = ray.get(ready[0])
            except Exception as error:
                failures[rank] = error
                deadline = min(deadline, time.monotonic() + GRACE_S)
        if not failures and not waiting:
            return [answers[rank] for rank in range(len(references))]
        problem: Exception
        if failures:
            problem = explain_failures(
                self.role, operation, failures, pids=self._pids, logs=self.logs
            )
        else:
            problem = explain_timeout(
                self.role,
                operation,
                sorted(waiting),
                timeout_s=limit_s,
                setting=setting,
                pids=self._pids,
                logs=self.logs,
            )
        if waiting:
            self.end(str(problem))
        raise problem

    def remember_processes(self, *, timeout_s: float) -> None:
        """Ask every rank who it is, so that a later death can be named."""
        call = self.submit("describe", [()] * len(self.actors))
        described = self.wait(call, timeout_s=timeout_s)
        self._pids = {rank: facts["pid"] for rank, facts in enumerate(described)}

    def end(self, reason: str) -> None:
        """End every actor; later calls are refused with the reason."""
        self._lost = reason
        for actor in self.actors:
            ray.kill(actor, no_restart=True)
