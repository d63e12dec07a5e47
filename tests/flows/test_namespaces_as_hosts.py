"""What the hosts that other tests make can and cannot do, and that nothing of them stays."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hosts_in_namespaces import S3_PORT, SWITCH_ADDRESS, WORK, network, why_no_hosts

HOLDER = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from hosts_in_namespaces import network
with network(["one", "two"], logs=Path(sys.argv[3])) as net:
    for host in net.hosts.values():
        host.start("sleep", "600", env={}, output=sys.stderr)
    print(net.switch.pid, *(host.pid for host in net.hosts.values()), flush=True)
    time.sleep(600)
"""
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2).close()"


def reaches(host, address, port=S3_PORT):
    command = host.command(sys.executable, "-c", CONNECT, address, str(port))
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0


def links():
    return sorted(path.name for path in Path("/sys/class/net").iterdir())


def test_hosts_share_a_network_and_no_disk(tmp_path):
    before = links()
    with network(["one", "two"], logs=tmp_path) as net:
        one, two = net.hosts["one"], net.hosts["two"]
        assert one.run("hostname", timeout_s=10) == "one\n"
        one.run("sh", "-c", f"echo text > {WORK}/file", timeout_s=10)
        assert two.run("ls", WORK, timeout_s=10) == ""
        refused = one.command("sh", "-c", f"echo text > {Path(__file__).parent}/file")
        assert b"Read-only" in subprocess.run(refused, capture_output=True, timeout=10).stderr

        received = net.bytes_received("one")
        assert reaches(one, SWITCH_ADDRESS)
        assert net.bytes_received("one") > received
        assert not reaches(one, "192.0.2.1"), "a way to the outside"
        net.cut_off("one")
        assert not reaches(one, SWITCH_ADDRESS)
        assert reaches(two, SWITCH_ADDRESS)
        net.connect("one")
        assert any(reaches(one, SWITCH_ADDRESS) for _ in range(10))
    assert links() == before
    for host in (net.switch, one, two):
        assert not Path(f"/proc/{host.pid}").exists()


def test_hosts_go_with_a_maker_that_is_killed(tmp_path):
    reason = why_no_hosts()
    if reason is not None:
        pytest.skip(reason)
    own, shared = str(Path(__file__).parent), str(Path(__file__).parents[1])
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, own, shared, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    pids = [Path(f"/proc/{pid}") for pid in holder.stdout.readline().split()]
    assert len(pids) == 3
    assert all(process.exists() for process in pids)
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    deadline = time.monotonic() + 15
    while any(process.exists() for process in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
