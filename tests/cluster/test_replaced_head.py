"""A Ray head that ends and comes back as another one, below a driver that lives on."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from alignment.cluster.head import head_command, head_environment, node_address

pytestmark = pytest.mark.engines

DRIVER = """
import sys
from pathlib import Path
from alignment.cluster import Cluster
from alignment.cluster.failures import lost_ray_named
from alignment.cluster.placement import reserve_placement
from alignment.config import ClusterConfig
from alignment.errors import AbsentClusterError
from alignment.role_specs import FrozenSpec

spec = FrozenSpec(name="first", kind="language", model_folder=Path(sys.argv[2]))
with Cluster.open(ClusterConfig(address=sys.argv[1]), log_folder=Path(sys.argv[3])) as cluster:
    cluster.start_roles([spec])
    reserved = cluster._reserved[0][0]
    unanswered = cluster._create_actors(spec, [spec], reserved)  # has no room: nobody answers
    call = unanswered.submit("describe", [()])
    print("STARTED", flush=True)
    sys.stdin.readline()
    try:
        call.wait(unanswered.deadline())
    except AbsentClusterError as error:
        print("ENDED", error, flush=True)
    try:
        with lost_ray_named("asking for room"):
            reserve_placement(reserved.placement, timeout_s=20)
    except AbsentClusterError as error:
        print("NAMED", error, flush=True)
print("CLOSED", flush=True)
with Cluster.open(ClusterConfig(address=sys.argv[1]), log_folder=Path(sys.argv[3])) as cluster:
    cluster.start_roles([spec])
    print("AGAIN", flush=True)
"""


def test_a_driver_names_the_lost_head_closes_and_uses_the_new_one(
    tiny_model: Path, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    environ = os.environ | dict(head_environment(token))
    port = free_port()
    with started_head(port, environ) as first:
        driver = subprocess.Popen(
            [
                *(sys.executable, "-c", DRIVER, f"{node_address()}:{port}"),
                *(str(tiny_model), str(tmp_path)),
            ],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert driver.stdout is not None
        assert driver.stdout.readline() == "STARTED\n"
        kill_all(first)
    with started_head(port, environ):
        output, errors = driver.communicate("go on\n", timeout=120)
    assert "ENDED Ray's process on this machine has ended" in output, output + errors
    assert "NAMED Ray was lost while asking for room" in output, output + errors
    assert output.splitlines()[-2:] == ["CLOSED", "AGAIN"], output + errors
    assert driver.returncode == 0
    assert "a reservation was not given back, Ray was lost" in errors


@contextmanager
def started_head(port: int, environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    head = subprocess.Popen(
        head_command(
            port=port, dashboard_port=free_port(), temp_folder=folder, object_store_gib=0.1
        ),
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not answers(port):
            assert head.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield head
    finally:
        kill_all(head)
        shutil.rmtree(folder, ignore_errors=True)


def kill_all(head: subprocess.Popen[bytes]) -> None:
    """The head and everything that it started, at once."""
    if head.poll() is not None:
        return
    processes = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
    for process in processes:
        if process.is_running():
            process.send_signal(signal.SIGKILL)
    head.wait(timeout=30)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((node_address(), port)) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
