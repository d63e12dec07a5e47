"""However a driver ends, no process or scratch folder of its cluster stays."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.engines

DRIVER = """
import sys, time
from pathlib import Path
from alignment.cluster import Cluster
from alignment.config import ClusterConfig
from alignment.role_specs import FrozenSpec

config = ClusterConfig(object_store_gib=0.1, threads=1)
spec = FrozenSpec(name="reference", kind="language", model_folder=Path(sys.argv[1]))
with Cluster.open(config, log_folder=Path(sys.argv[2])) as cluster:
    [facts] = cluster.start_roles([spec])["reference"].describe()
    print("READY", facts["pid"], cluster.scratch, flush=True)
    if sys.argv[3] == "exception":
        raise RuntimeError("something of the driver's own")
    time.sleep(3600)
"""


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("exception", 1),
        (signal.SIGINT, -signal.SIGINT),
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_nothing_stays_when_a_driver_ends(
    ending: str | signal.Signals, code: int, tiny_model: Path, tmp_path: Path
) -> None:
    how = ending if isinstance(ending, str) else "wait"
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tiny_model), str(tmp_path / "logs"), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert driver.stdout is not None
        line = next(line for line in driver.stdout if line.startswith("READY"))
        actor, session = int(line.split()[1]), Path(line.split()[2])
        mine = processes_naming(session.parent) | {actor}
        assert len(mine) >= 4, "Ray's own processes and the actor"
        if isinstance(ending, signal.Signals):
            driver.send_signal(ending)
        assert driver.wait(timeout=60) == code
    finally:
        if driver.poll() is None:
            driver.kill()
    wait_until_gone(mine)
    if ending is not signal.SIGKILL:
        assert not session.parent.exists()
        logs = tmp_path / "logs" / "ray"
        assert logs.is_dir()
        assert not logs.is_symlink()
        assert list(logs.glob(f"worker-*-{actor}.err")), "the actor's output stays"
    shutil.rmtree(session.parent, ignore_errors=True)


def processes_naming(folder: Path) -> set[int]:
    """Processes that have the folder on their command line: all of Ray's own."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command:
            found.add(int(entry.name))
    return found


def wait_until_gone(pids: set[int], *, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while alive := {pid for pid in pids if is_alive(pid)}:
        assert time.monotonic() < deadline, f"still running: {sorted(alive)}"
        time.sleep(0.2)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
