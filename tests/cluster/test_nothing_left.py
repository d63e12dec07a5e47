"""However a driver ends, no process or scratch folder of its cluster stays."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from alignment.cluster.leftovers import OWNER_FILE, record_processes, remove_abandoned
from alignment.cluster.process_identity import identity_of

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
        # A shell that runs pytest in the background has SIGINT ignored, and a child inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert driver.stdout is not None
        line = next(line for line in driver.stdout if line.startswith("READY"))
        actor, session = int(line.split()[1]), Path(line.split()[2])
        mine = processes_naming(session.parent) | {actor}
        assert len(mine) >= 4, "Ray's own processes and the actor"
        mapped = shared_memory_of(mine)
        if ending is signal.SIGKILL:
            os.kill(actor, signal.SIGSTOP)  # it cannot see that its driver is gone
        if isinstance(ending, signal.Signals):
            driver.send_signal(ending)
        ended = driver.wait(timeout=180)
        # Ray's own handler of SIGTERM may end in an abort while its threads are still at work.
        assert ended in {code, -signal.SIGABRT} if ending is signal.SIGTERM else ended == code
    finally:
        if driver.poll() is None:
            driver.kill()
    if ending is signal.SIGKILL:
        # The actor as a rule still stands there, stopped; but a stopped process whose group lost
        # its last parent is sent SIGHUP by the kernel, and Ray may be quicker at its end.
        wait_until_gone(mine - {actor})
        assert session.parent in remove_abandoned(session.parent.parent), "as the next start does"
    wait_until_gone(mine)
    assert not session.parent.exists()
    assert not [path for path in mapped if path.exists()]
    logs = tmp_path / "logs" / "ray"
    assert logs.is_dir()
    assert not logs.is_symlink()
    assert list(logs.glob(f"worker-*-{actor}.err")), "the actor's output stays"


def test_only_what_a_dead_owner_of_ours_left_is_removed(tmp_path: Path) -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    alive = identity_of(sleeper.pid)
    assert alive is not None
    owners = {
        "dead": replace(alive, started=alive.started - 1),  # the number was given out again
        "alive": alive,
        "elsewhere": replace(alive, started=1, numbering="another machine"),
    }
    try:
        for name, owner in owners.items():
            (tmp_path / f"ray-{name}").mkdir()
            record = {"owner": asdict(owner), "logs": str(tmp_path / "logs")}
            (tmp_path / f"ray-{name}" / OWNER_FILE).write_text(json.dumps(record))
            record_processes(tmp_path / f"ray-{name}", [owner])
        (tmp_path / "ray-of_somebody").mkdir()
        assert remove_abandoned(tmp_path) == [tmp_path / "ray-dead"]
        left = {path.name for path in tmp_path.glob("ray-*")}
        assert left == {"ray-alive", "ray-elsewhere", "ray-of_somebody"}
        assert sleeper.poll() is None, "its number was on the list, but not its start"
        record_processes(tmp_path / "ray-of_somebody", [alive])
        assert not list((tmp_path / "ray-of_somebody").iterdir())
    finally:
        sleeper.kill()
        sleeper.wait()
    assert remove_abandoned(tmp_path) == [tmp_path / "ray-alive"]


def test_a_stopped_process_of_a_dead_owner_is_ended(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        dead, stopped = identity_of(owner.pid), identity_of(left.pid)
        assert dead is not None
        assert stopped is not None
        (tmp_path / "ray-dead").mkdir()
        record = {"owner": asdict(dead), "logs": str(tmp_path / "logs")}
        (tmp_path / "ray-dead" / OWNER_FILE).write_text(json.dumps(record))
        record_processes(tmp_path / "ray-dead", [dead, stopped])
        left.send_signal(signal.SIGSTOP)
        owner.kill()
        owner.wait()
        assert remove_abandoned(tmp_path) == [tmp_path / "ray-dead"]
        assert left.wait(timeout=10) == -signal.SIGKILL
    finally:
        owner.kill()
        left.kill()


def test_two_starts_at_once_do_not_remove_the_same_folder(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    dead = identity_of(owner.pid)
    assert dead is not None
    owner.kill()
    owner.wait()
    (tmp_path / "ray-dead").mkdir()
    record = {"owner": asdict(dead), "logs": str(tmp_path / "logs")}
    (tmp_path / "ray-dead" / OWNER_FILE).write_text(json.dumps(record))
    with (tmp_path / "ray-dead" / OWNER_FILE).open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert remove_abandoned(tmp_path) == []
    assert remove_abandoned(tmp_path) == [tmp_path / "ray-dead"]


def shared_memory_of(pids: set[int]) -> set[Path]:
    """Files in shared memory that the processes use and that have a name."""
    found = set()
    for pid in pids:
        try:
            maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):  # one of Ray's own that was done
            continue
        for line in maps.splitlines():
            path = line.partition("/dev/shm/")[2]
            if path and not path.endswith("(deleted)"):
                found.add(Path("/dev/shm") / path)
    return found


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


def test_waiting_after_the_end_of_ray_starts_no_other_one() -> None:
    """Ray would: its calls begin a Ray of their own where there is none."""
    script = """
import ray
from alignment.cluster.connection import first_ready
from alignment.errors import AbsentClusterError
try:
    first_ready(["a call of before"], timeout_s=60.0)
except AbsentClusterError as error:
    print(error)
print(ray.is_initialized())
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    said, is_begun = ended.stdout.splitlines()
    assert "with calls under way: 1" in said
    assert is_begun == "False"
