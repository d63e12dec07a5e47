"""What a Ray job server can say that no healthy cluster says, over real sockets on loopback.

Healthy ones are real, in tests/flows/test_stage_jobs.py.
"""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from aiohttp import web


@dataclass
class AilingJobs:
    """One server's job: what it says about it, and what it was asked to stop.

    `state` is None while the job is not known. `tails` are the texts of one connection after the
    other, each of which then ends in order; a later one waits. `log` is None where the log cannot
    be read.
    """

    url: str = ""
    state: str | None = None
    known_after_s: float = 0.0
    answers_after_s: float = 0.0
    tails: list[str] = field(default_factory=list)
    log: str | None = ""
    metadata: dict[str, str] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)

    async def version(self, request: web.Request) -> web.Response:
        """Of Ray and of its interfaces."""
        return web.json_response(
            {"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""}
        )

    async def submit(self, request: web.Request) -> web.Response:
        """Take a job, as late as told."""
        job_id = (await request.json())["submission_id"]
        await asyncio.sleep(self.known_after_s)
        self.state, self.metadata = "RUNNING", (await request.json())["metadata"]
        await asyncio.sleep(self.answers_after_s)
        return web.json_response({"job_id": job_id, "submission_id": job_id})

    async def info(self, request: web.Request) -> web.Response:
        """The job's state."""
        if self.state is None:
            return web.Response(status=404, text="no such job")
        return web.json_response(self._told(request.match_info["job"]))

    async def listed(self, request: web.Request) -> web.Response:
        """All jobs."""
        return web.json_response([self._told("a-job")] if self.state else [])

    def _told(self, job_id: str) -> dict[str, Any]:
        named = {"type": "SUBMISSION", "submission_id": job_id, "entrypoint": "true"}
        return named | {"status": self.state, "start_time": 1000, "metadata": self.metadata}

    async def stop(self, request: web.Request) -> web.Response:
        """Stop it at once."""
        self.stopped.append(request.match_info["job"])
        self.state = "STOPPED"
        return web.json_response({"stopped": True})

    async def logs(self, request: web.Request) -> web.Response:
        """All it has printed."""
        if self.log is None:
            return web.Response(status=500, text="UnicodeDecodeError")
        return web.json_response({"logs": self.log})

    async def tail(self, request: web.Request) -> web.WebSocketResponse:
        """What it prints."""
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        if self.tails:
            await socket.send_str(self.tails.pop(0))
        else:
            await asyncio.sleep(30)
        return socket

    async def broken(self, request: web.Request) -> web.Response:
        """Actors and reservations cannot be listed."""
        return web.json_response({"result": False, "msg": "the tables are away", "data": {}})


@contextmanager
def ailing_job_server(**told: Any) -> Iterator[AilingJobs]:
    """A server on loopback until the block ends."""
    jobs, loop = AilingJobs(**told), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(_start(jobs), loop).result(20)
    try:
        yield jobs
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)


async def _start(jobs: AilingJobs) -> web.AppRunner:
    app = web.Application()
    app.router.add_get("/api/version", jobs.version)
    app.router.add_post("/api/jobs/", jobs.submit)
    app.router.add_get("/api/jobs/", jobs.listed)
    app.router.add_get("/api/jobs/{job}", jobs.info)
    app.router.add_post("/api/jobs/{job}/stop", jobs.stop)
    app.router.add_get("/api/jobs/{job}/logs", jobs.logs)
    app.router.add_get("/api/jobs/{job}/logs/tail", jobs.tail)
    app.router.add_get("/api/v0/{what}", jobs.broken)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    jobs.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    return runner


def lines_within(log: Any, wanted: int, timeout_s: float) -> list[str]:
    """The lines of a followed log, until there are so many or the time is over."""
    found: list[str] = []
    deadline = time.monotonic() + timeout_s
    while len(found) < wanted and time.monotonic() < deadline:
        found += log.lines(wait_s=0.2)
    return found
