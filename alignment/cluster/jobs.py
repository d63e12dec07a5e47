"""Ray jobs over HTTP: submit, look at, follow and stop them, without a connection to Ray itself.

A job is a process that Ray starts on the cluster and that outlives whoever submitted it. Its id is
ours, and is never given twice by one cluster; it is forgotten when the cluster's head ends.
"""

import asyncio
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient
from ray.util.state import list_actors, list_placement_groups
from ray.util.state.exception import RayStateApiException

from alignment.errors import AbsentClusterError, ClusterError

JobState = Literal["pending", "running", "succeeded", "failed", "stopped"]
AnswerT = TypeVar("AnswerT")
_OVERRIDES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_RECONNECT_S = 1.0
_CONNECT_TIMEOUT_S, _REQUEST_TIMEOUT_S = 5.0, 30.0
_STATE_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSeen:
    """A job as the cluster knows it.

    `driver` is Ray's own id of its process, once that connected; `started_s` counts from 1970.
    """

    state: JobState
    message: str
    metadata: Mapping[str, str]
    driver: str | None
    started_s: float

    @property
    def ended(self) -> bool:
        """Whether its process is gone."""
        return self.state in ("succeeded", "failed", "stopped")


class JobServer:
    """The job server of a Ray cluster, at the URL of its dashboard.

    Raises:
        AbsentClusterError: it does not answer; so does every method.
        ClusterError: it lets nobody in without a token, or refuses.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        # It would tell the operator of every connection that ends.
        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
        self._client: Any = self._ask(lambda: _Client(self.url))

    def look(self, job_id: str) -> JobSeen | None:
        """The job with this id; None if the cluster knows none."""
        return _if_there(lambda: _seen(self._ask(lambda: self._client.get_job_info(job_id))))

    def jobs(self) -> dict[str, JobSeen]:
        """Every job that was submitted to the cluster, by id."""
        details = self._ask(self._client.list_jobs)
        return {job.submission_id: _seen(job) for job in details if job.submission_id}

    def submit(self, job_id: str, command: str, *, metadata: Mapping[str, str]) -> bool:
        """Let the cluster run a shell command; False if somebody has just used the id."""
        try:
            self._ask(
                lambda: self._client.submit_job(
                    entrypoint=command, submission_id=job_id, metadata=dict(metadata)
                )
            )
        except ClusterError:
            if self.look(job_id) is None:
                raise
            return False
        return True

    def stop(self, job_id: str) -> None:
        """Ask the cluster to end the job's process, by force after some seconds."""
        _if_there(lambda: self._ask(lambda: self._client.stop_job(job_id)))

    def log(self, job_id: str) -> list[str]:
        """The lines that the job has printed so far; none if it, or its machine, is gone."""
        text = _if_there(lambda: self._ask(lambda: self._client.get_job_logs(job_id)))
        *whole, rest = (text or "").split("\n")  # as `JobLog` does: others are no ends of lines
        return [*whole, rest] if rest else whole

    def follow(self, job_id: str) -> "JobLog":
        """The job's output from its beginning on, as it comes. Use as a context."""
        return JobLog(self._client, job_id)

    def held(self, driver: str) -> list[str]:
        """What a job's driver still holds on the cluster: actors and reservations, in words."""
        mine: dict[str, Any] = {"address": self.url, "timeout": _STATE_TIMEOUT_S}
        actors = self._ask(lambda: list_actors(filters=[("job_id", "=", driver)], **mine))
        groups = self._ask(
            lambda: list_placement_groups(filters=[("creator_job_id", "=", driver)], **mine)
        )
        return [f"actor {a.class_name}" for a in actors if a.state != "DEAD"] + [
            f"reservation {g.placement_group_id}" for g in groups if g.state != "REMOVED"
        ]

    def _ask(self, question: Callable[[], AnswerT]) -> AnswerT:
        try:
            with _given_address():
                return question()
        except AuthenticationError as error:
            raise ClusterError(
                f"the job server {self.url} (`cluster.job_server`) asks for a token: set "
                "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a file with it, then run the same "
                "command again"
            ) from error
        except OSError as error:  # those of requests are of this kind, too
            raise AbsentClusterError(
                f"the job server {self.url} (`cluster.job_server`) does not answer ({error}); "
                "check that the cluster is up and that this is the address of its dashboard, then "
                "run the same command again: a job that is at work goes on"
            ) from error
        except (RuntimeError, RayStateApiException) as error:
            told = " ".join(str(error).split())
            if "status code 404" in told:
                raise _NoSuchJobError(told) from error
            if "status code 5" in told:  # e.g. no agent yet on any machine of a new cluster
                raise AbsentClusterError(
                    f"the job server {self.url} is up, but its cluster is not ready: {told} If "
                    "that stays so, another Ray on the head's machine may have taken the port of "
                    "its agent: start the head with --dashboard-agent-listen-port 0"
                ) from error
            raise ClusterError(f"the job server {self.url} refuses: {told}") from error


class _Client(JobSubmissionClient):
    """Ray's own, which without a limit waits for ever for a server that is silent."""

    def _do_request(self, method: str, endpoint: str, **named: Any) -> Any:
        limits = {"timeout": (_CONNECT_TIMEOUT_S, _REQUEST_TIMEOUT_S)}
        return super()._do_request(method, endpoint, **limits | named)


class JobLog:
    """Lines of a job's output, read by a thread of its own; a broken connection is mended."""

    def __init__(self, client: Any, job_id: str) -> None:
        self._client, self._job_id = client, job_id
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._read = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="job-log", daemon=True)

    def __enter__(self) -> "JobLog":
        """Begin to read."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop reading; safe while the job goes on."""
        self._closed.set()
        self._thread.join(_STATE_TIMEOUT_S)

    @property
    def read(self) -> int:
        """How many lines have come so far."""
        return self._read

    def lines(self, wait_s: float) -> Iterator[str]:
        """Lines that have come, waiting at most `wait_s` for the first one."""
        try:
            yield self._lines.get(timeout=wait_s)
            while True:
                yield self._lines.get_nowait()
        except queue.Empty:
            return

    def _run(self) -> None:
        while not self._closed.is_set():
            # Whoever looks at the job's state learns what is wrong, and whether it has ended: a
            # connection also ends in order when an agent of Ray in between is restarted.
            with suppress(Exception):
                asyncio.run(self._until_closed())
            self._closed.wait(_RECONNECT_S)

    async def _until_closed(self) -> None:
        reading = asyncio.create_task(self._tail())
        while not reading.done() and not self._closed.is_set():
            await asyncio.wait([reading], timeout=0.2)
        if not reading.done():
            reading.cancel()
            await asyncio.wait([reading])
            return
        reading.result()

    async def _tail(self) -> None:
        """The output from its beginning; lines known from an earlier connection are skipped."""
        known, seen, half = self._read, 0, ""
        async for chunk in self._client.tail_job_logs(self._job_id):
            *whole, half = (half + chunk).split("\n")
            for line in whole:
                seen += 1
                if seen > known:
                    self._lines.put(line)
                    self._read = seen


class _NoSuchJobError(ClusterError):
    """The cluster knows no job of that id."""


def wait_until_free(server: JobServer, job_id: str, *, timeout_s: float) -> list[str]:
    """Wait until a stopped job's process is gone and nothing of it is held.

    Returns:
        What is still there after `timeout_s`, in words; nothing if all is free.
    """
    deadline, driver = time.monotonic() + timeout_s, None
    while True:
        seen = server.look(job_id)
        driver = (seen.driver if seen else None) or driver
        left = [f"the process of job {job_id}"] if seen is not None and not seen.ended else []
        if not left and driver is not None:
            left = server.held(driver)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.3)


@contextmanager
def _given_address() -> Iterator[None]:
    """Ray prefers these variables to the address it is given."""
    taken = {name: os.environ.pop(name) for name in _OVERRIDES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)


def _if_there(question: Callable[[], AnswerT]) -> AnswerT | None:
    try:
        return question()
    except _NoSuchJobError:
        return None


def _seen(details: Any) -> JobSeen:
    return JobSeen(
        state=details.status.value.lower(),
        message=details.message or "",
        metadata=details.metadata or {},
        driver=details.job_id,
        started_s=(details.start_time or 0) / 1000,
    )
