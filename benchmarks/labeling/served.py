"""A served ranking page in a process that can be killed, and rounds to rank at it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import text

from alignment.config import PanelConfig
from alignment.records import CandidateSet, Message, Prompt, Response
from labeling_ui.judgement import RoundSettings
from labeling_ui.page_client import Saved
from labeling_ui.simulated_clients import DriveLimits, DriveReport, drive
from labeling_ui.simulated_panel import panel_identity
from labeling_ui.store import LabelStore

START_TIMEOUT_S = 120.0
SEED = 0

OVER_OR_MISCOUNTED = text(
    "SELECT task.id FROM task WHERE done + leased > wanted "
    "OR done != (SELECT count(*) FROM assignment a WHERE a.task_id = task.id AND a.state = 'done') "
    "OR leased != "
    "(SELECT count(*) FROM assignment a WHERE a.task_id = task.id AND a.state = 'leased')"
)
"""Tasks with more leases and rankings than wanted, or whose counters are not a recount."""


def panel_of(clients: int) -> PanelConfig:
    """So many honest simulated labelers."""
    return PanelConfig(labelers=clients, spammers=0)


def simulated_round(
    store: LabelStore, panel: PanelConfig, *, prompts: int, overlap: int, lease_s: float = 1200.0
) -> str:
    """A round for the panel; `prompts` prompts of four responses each."""
    candidates = [
        CandidateSet(
            prompt=Prompt(
                id=f"p{i}", messages=(Message(role="user", content=f"What is {i} plus {i}?"),)
            ),
            responses=tuple(
                Response(id=f"p{i}-r{k}", text=f"It is {2 * i + k}. " + "So it is. " * 10 * k)
                for k in range(4)
            ),
        )
        for i in range(prompts)
    ]
    status = store.publish_round(
        candidates,
        rankings_per_prompt=overlap,
        panel=panel_identity(panel, SEED),
        settings=RoundSettings(lease_s=lease_s),
    )
    return status.round_id


class ServedPage:
    """`python -m labeling_ui` on a port that stays the same over kills and restarts."""

    def __init__(self, place: Path | str, round_id: str, log: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as found:
            self._port = found.getsockname()[1]
        where = ["--store", str(place)] if isinstance(place, Path) else ["--database", place]
        self._command = [sys.executable, "-m", "labeling_ui", *where, "--simulated"]
        self._command += ["--round", round_id, "--port", str(self._port)]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}/"

    def start(self) -> None:
        """Starts the server and returns once it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError):
                opener.open(f"{self.url}healthz", timeout=5).close()
                return
            time.sleep(0.1)
        raise RuntimeError(f"the page did not start: {self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        """`kill -9`."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def served(place: Path | str, round_id: str, log: Path) -> Iterator[ServedPage]:
    """A page that is up, and gone at the end."""
    page = ServedPage(place, round_id, log)
    try:
        page.start()
        yield page
    finally:
        page.kill()


class Watch:
    """Asks the database again and again whether any task is over-assigned or miscounted."""

    def __init__(self, store: LabelStore, *, every_s: float) -> None:
        self._store, self._every_s = store, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.wrong: list[str] = []
        self.looks = 0

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            with self._store.read() as connection:
                self.wrong += connection.execute(OVER_OR_MISCOUNTED).scalars().all()
            self.looks += 1


def drive_with_kills(
    page: ServedPage, panel: PanelConfig, limits: DriveLimits, *, kill_after: list[int]
) -> tuple[DriveReport, set[str], int]:
    """Ranks at the page, killed and restarted whenever so many rankings were acknowledged.

    Gives the report, the ids of all acknowledged rankings, and the kills.
    """
    acknowledged: set[str] = set()
    finished = threading.Event()
    kills = 0

    def note(_name: str, saved: Saved) -> None:
        acknowledged.add(saved.submission_id)

    def kill_when_due() -> None:
        nonlocal kills
        for due in kill_after:
            while len(acknowledged) < due:
                if finished.wait(0.005):
                    return
            page.kill()
            kills += 1
            page.start()

    killer = threading.Thread(target=kill_when_due)
    killer.start()
    try:
        report = drive(
            page.url, panel, limits, seed=SEED, patience_s=START_TIMEOUT_S, on_saved=note
        )
    finally:
        finished.set()
        killer.join()
    return report, acknowledged, kills
