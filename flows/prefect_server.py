"""The Prefect API of a run: the user's own server, or a private one that ends with the run.

Prefect can start a temporary server itself, but only once it is needed, on a guessed port, and
a killed run leaves it behind. Here it starts early, beside our own imports, on a socket that is
already bound, and the system ends it with its parent.

    python -m flows.prefect_server prepare    migrate an empty database once, for all later stores
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from alignment.errors import StoreError
from flows.durable import disk_errors, made_folder

START_TIMEOUT_S = 180.0
"""A new database is migrated step by step, which a busy machine may take a minute for."""
_STOP_TIMEOUT_S = 5.0
_POLL_S = 0.05
_LOG_LINES_SHOWN = 15


class PrivateServer:
    """A Prefect server process that is starting or running; `url` is known at once."""

    def __init__(self, home: Path) -> None:
        with disk_errors(home):
            made_folder(home)
            _copy_prepared_database(home)
        self._log = home / "server.log"
        with socket.create_server(("127.0.0.1", 0)) as listener, self._log.open("wb") as log:
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
            arguments = ["serve", str(listener.fileno()), str(os.getpid())]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flows.prefect_server", *arguments],
                env=os.environ | {"PREFECT_HOME": str(home), "PREFECT__SERVER_EPHEMERAL": "1"},
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C goes to the run, which stops its server last
            )

    def wait_until_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once the server answers.

        Raises:
            StoreError: it ended or did not answer in time; shows the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise StoreError(self._failure(f"ended with code {self._process.returncode}"))
            with contextlib.suppress(OSError):
                remaining_s = max(deadline - time.monotonic(), _POLL_S)
                with urllib.request.urlopen(f"{self.url}/health", timeout=remaining_s):
                    return
            time.sleep(_POLL_S)
        raise StoreError(self._failure(f"did not answer within {timeout_s:.0f} s"))

    def stop(self) -> None:
        """End the process; does nothing if it has ended."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _failure(self, what: str) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(
            [
                f"the run's private Prefect server {what}. Name a running server in "
                f"PREFECT_API_URL, or see {self._log}, which ends with:",
                *lines[-_LOG_LINES_SHOWN:],
            ]
        )


@contextlib.contextmanager
def prefect_api(home: Path) -> Iterator[PrivateServer | None]:
    """Name a Prefect API in PREFECT_API_URL while the block lasts.

    The user's own server if the variable is set (gives None), else a private one with its
    database in `home`; it is still starting when the block begins. Call `wait_until_ready`
    before the first flow.
    """
    if "PREFECT_API_URL" in os.environ:
        yield None
        return
    server = PrivateServer(home)
    os.environ["PREFECT_API_URL"] = server.url
    try:
        yield server
    finally:
        del os.environ["PREFECT_API_URL"]
        server.stop()


@contextlib.contextmanager
def without_heartbeats() -> Iterator[None]:
    """No heartbeats of flow runs while the block lasts: each costs its flow up to a second.

    They tell a server that outlives the run that the run has died; a private one does not.
    """
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def serve(descriptor: int, parent: int) -> None:
    """Serve Prefect's API on a bound socket until told to stop or until `parent` ends."""
    _end_with_parent(parent)
    import gc

    gc.disable()  # nothing to collect while a thousand modules load
    import uvicorn
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=True, final=True)
    gc.freeze()
    gc.enable()
    uvicorn.run(app, fd=descriptor, log_level="error", lifespan="on")


def prepare_database() -> Path:
    """Migrate an empty database and keep it with this Python environment, for later stores."""
    import asyncio

    path = prepared_database()
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / path.name
        os.environ["PREFECT_API_DATABASE_CONNECTION_URL"] = f"sqlite+aiosqlite:///{fresh}"
        from prefect.server.database import provide_database_interface

        asyncio.run(provide_database_interface().create_db())
        made_folder(path.parent)
        partial = path.with_suffix(".partial")
        shutil.copyfile(fresh, partial)
        partial.replace(path)
    return path


def prepared_database() -> Path:
    """Where this Python environment keeps its migrated empty database."""
    return Path(sys.prefix) / "share" / "alignflow" / f"prefect-{version('prefect')}.db"


def _copy_prepared_database(home: Path) -> None:
    target = home / "prefect.db"
    if not target.exists() and prepared_database().exists():
        partial = target.with_suffix(".partial")
        shutil.copyfile(prepared_database(), partial)
        partial.replace(target)


def _end_with_parent(parent: int) -> None:
    """Ask Linux to end this process when the thread that started it ends, however it ends."""
    import ctypes
    import signal

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("the run that asked for this server has ended")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", descriptor, parent]:
            serve(int(descriptor), int(parent))
        case ["prepare"]:
            print(f"migrated {prepare_database()}")
        case _:
            sys.exit(__doc__)
