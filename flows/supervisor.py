"""Keeps a few services of one machine alive: starts them in order, restarts them with back-off.

What runs is written down with process number and start time, so that whoever comes later ends
exactly that. Everything a supervisor starts, and what those start in turn, carries a mark in its
environment: a flow run that outlived its worker is found by it.
"""

import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alignment.cluster.process_identity import ProcessIdentity, identity_of, kill, state_of
from flows.durable import write_json

logger = logging.getLogger("alignflow.up")

MARK = "ALIGNFLOW_SERVICES"
"""Environment variable by which everything that was started here is known."""
RECORD_NAME = "services.json"
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_STABLE_S = 60.0
"""A service that lived this long starts again at once."""
_POLL_S = 0.5
_STOP_S = 25.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A process to keep alive.

    `ready` tells whether it can be used; services after it start only then. With `ends_group`,
    what it leaves when it dies is ended before it starts again (not a worker's flow runs).
    """

    name: str
    command: Sequence[str]
    ready: Callable[[], bool] = lambda: True
    before: Callable[[], None] = lambda: None
    """Called once before the first start, e.g. to register deployments."""
    ends_group: bool = False


@dataclass(slots=True)
class _Running:
    """A service's process and how often it had to be started."""

    process: subprocess.Popen[bytes] | None = None
    identity: ProcessIdentity | None = None
    started_s: float = 0.0
    next_start_s: float = 0.0
    quick_deaths: int = 0
    restarts: int = 0


@dataclass(slots=True)
class Supervisor:
    """Keeps `services` alive with `environ`; record and logs lie in `home`."""

    home: Path
    services: Sequence[Service]
    environ: Mapping[str, str]
    mark: str
    told: Mapping[str, Any] = field(default_factory=dict)
    """Addresses and the like, for readers of the record."""
    stop_s: float = _STOP_S
    """How long each service may take to end before it is killed."""
    _running: dict[str, _Running] = field(default_factory=dict)
    _stop: bool = False

    def run(self, *, start_timeout_s: float = 300.0) -> None:
        """Start everything, keep it alive until SIGTERM or SIGINT, and end everything.

        Raises:
            TimeoutError: a service was not ready in time; everything is ended before.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask_to_stop)
        try:
            self._save(ready=False)
            for service in self.services:
                service.before()
                self._start(service)
                self._await_ready(service, time.monotonic() + start_timeout_s)
            self._save(ready=True)
            while not self._stop:
                for service in self.services:
                    self._keep(service)
                time.sleep(_POLL_S)
        finally:
            self._end_all()

    def _ask_to_stop(self, number: int, frame: object) -> None:
        self._stop = True

    def _start(self, service: Service) -> None:
        running = self._running.setdefault(service.name, _Running())
        log = self.home / "logs" / f"{service.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            running.process = subprocess.Popen(
                list(service.command),
                env={**os.environ, **self.environ, MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        running.identity = identity_of(running.process.pid)
        running.started_s = time.monotonic()
        logger.info("%s started as process %s", service.name, running.process.pid)

    def _await_ready(self, service: Service, deadline: float) -> None:
        while not self._stop and not service.ready():
            self._keep(service)
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{service.name} was not ready in time; its log: "
                    f"{self.home / 'logs' / service.name}.log"
                )
            time.sleep(_POLL_S)

    def _keep(self, service: Service) -> None:
        """Notice a death; start again once its pause is over."""
        running = self._running[service.name]
        now = time.monotonic()
        if running.process is not None:
            code = running.process.poll()
            if code is None:
                return
            if service.ends_group:
                _end_group(running.process.pid)
            stable = now - running.started_s >= _STABLE_S
            running.quick_deaths = 0 if stable else running.quick_deaths + 1
            pause_s = pause_before_restart(running.quick_deaths)
            logger.warning(
                "%s ended with code %s; starts again in %.0f s", service.name, code, pause_s
            )
            running.process, running.next_start_s = None, now + pause_s
        elif now >= running.next_start_s:
            running.restarts += 1
            self._start(service)
            self._save(ready=True)

    def _save(self, *, ready: bool) -> None:
        own = identity_of(os.getpid())
        assert own is not None
        services = {
            name: {
                "process": asdict(running.identity) if running.identity else None,
                "restarts": running.restarts,
                "log": str(self.home / "logs" / f"{name}.log"),
            }
            for name, running in self._running.items()
        }
        record = {
            "supervisor": asdict(own),
            "mark": self.mark,
            "ready": ready,
            "services": services,
            "told": dict(self.told),
        }
        write_json(self.home / RECORD_NAME, record)

    def _end_all(self) -> None:
        identities = [r.identity for r in reversed(self._running.values()) if r.identity]
        end_services(identities, self.mark, beside=frozenset({os.getpid()}), stop_s=self.stop_s)
        (self.home / RECORD_NAME).unlink(missing_ok=True)


def pause_before_restart(quick_deaths: int) -> float:
    """Seconds to wait: 1, 2, 4, ... 60 for a service that dies soon after each start."""
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** max(0, quick_deaths - 1))


def end_services(
    ordered: Sequence[ProcessIdentity],
    mark: str,
    *,
    beside: frozenset[int] = frozenset(),
    stop_s: float = _STOP_S,
) -> list[ProcessIdentity]:
    """End services one after another, and then whatever else carries their mark.

    Each gets SIGTERM and time, then SIGKILL. Flow runs get their SIGTERM first, while worker and
    server can still be told. Gives everything that was ended.
    """
    known = {process.pid for process in ordered} | beside
    others = [process for process in marked_processes(mark) if process.pid not in known]
    runs = [process for process in others if is_flow_run(process)]
    _end(runs, stop_s)
    for process in ordered:
        _end([process], stop_s)
    left = [process for process in marked_processes(mark) if process.pid not in beside]
    _end(left, 5.0)
    return [*runs, *ordered, *left]


def marked_processes(mark: str) -> list[ProcessIdentity]:
    """Processes of this user whose environment carries the mark."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                process = identity_of(int(entry.name))
                if process is not None and state_of(process) not in (None, "Z"):
                    found.append(process)
    return found


def is_flow_run(process: ProcessIdentity) -> bool:
    """Whether the process is a flow run that a worker started."""
    with suppress(OSError):
        return b"prefect.engine" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    return False


def read_record(home: Path) -> dict[str, Any] | None:
    """What runs, as the supervisor wrote it down; None where nothing was."""
    try:
        record: dict[str, Any] = json.loads((home / RECORD_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record


def is_running(process: ProcessIdentity) -> bool:
    """Whether exactly this process still works."""
    return state_of(process) not in (None, "Z")


def _end(processes: Sequence[ProcessIdentity], wait_s: float) -> None:
    for process in processes:
        if is_running(process):
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + wait_s
    while any(map(is_running, processes)) and time.monotonic() < deadline:
        time.sleep(0.1)
        _reap(processes)
    for process in processes:
        kill(process)
    _reap(processes)


def _reap(processes: Sequence[ProcessIdentity]) -> None:
    """Take note of children that ended, so that they do not stay as zombies."""
    for process in processes:
        with suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)


def _end_group(group: int) -> None:
    """End what a dead leader left in its process group, which no other service shares."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
