"""Hosts made of namespaces: each with a network, a disk, processes and a name of its own.

A switch joins them, and an S3 server is on it; no way leads outside. A host sees the machine's
files read-only and has scratch of its own where programs write, so two hosts share no file that
either can change. When a host's first process ends, the kernel ends all others in it and takes
its network and mounts away; that first process ends with the test's own, however that ends.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
from s3_server import s3_environment

REPOSITORY = Path(__file__).parents[2]
WORK = "/tmp/work"
"""Folder of a host's own, where its commands run."""
SWITCH_ADDRESS = "10.77.0.1"
S3_PORT = 9000
OWN_PLACES = ("/tmp", "/var/tmp", "/dev/shm")
TOOLS = ("ip", "unshare", "nsenter", "setpriv", "mount")
FIRST_PROCESS = f"""
set -e
for place in {" ".join(OWN_PLACES)}; do mount -t tmpfs -o size=2g,mode=1777 tmpfs $place; done
mkdir {WORK} /tmp/home
printf '127.0.0.1 localhost\\n%s' "$2" > /tmp/hosts
: > /tmp/resolv.conf
for file in hosts resolv.conf; do [ ! -e /etc/$file ] || mount --bind /tmp/$file /etc/$file; done
mount -o bind,remount,ro /
hostname "$1"
ip link set lo up
sleep infinity &
echo ready
while :; do wait; done
"""


def why_no_hosts() -> str | None:
    """Why hosts cannot be made here; None if they can."""
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: iproute2, util-linux)"
    for needed in (REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)):
        if any(needed.is_relative_to(place) for place in OWN_PLACES):
            return f"{needed} lies where hosts have scratch of their own"
    apart = ("unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc")
    tried = subprocess.run(
        [*apart, "ip", "link", "add", "bridge0", "type", "bridge"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return f"no network namespaces: {tried.stderr.strip()}" if tried.returncode else None


@dataclass(frozen=True)
class Host:
    """One host; `pid` is its first process, as seen from outside."""

    name: str
    address: str
    pid: int

    def command(self, *arguments: str) -> list[str]:
        """What runs these arguments in the host, in its own folder."""
        into = ["nsenter", "--target", str(self.pid), "--all", "sh", "-c"]
        return [*into, f'cd {WORK} && exec "$@"', "sh", *arguments]

    def run(self, *arguments: str, env: Mapping[str, str] | None = None, timeout_s: float) -> str:
        """What a command in the host printed; it must succeed."""
        done = subprocess.run(
            self.command(*arguments),
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, f"{self.name}: {arguments}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(
        self, *arguments: str, env: Mapping[str, str], output: IO[Any]
    ) -> "subprocess.Popen[bytes]":
        """A command in the host that goes on; it ends with the host at the latest."""
        return subprocess.Popen(
            self.command(*arguments),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


@dataclass(frozen=True)
class Network:
    """A switch and the hosts on it, by name."""

    switch: Host
    hosts: Mapping[str, Host]

    @property
    def s3_environment(self) -> dict[str, str]:
        """How programs on the hosts reach the S3 server."""
        return s3_environment(f"{SWITCH_ADDRESS}:{S3_PORT}")

    def cut_off(self, name: str) -> None:
        """Take the host's cable out: packets vanish, nobody is told."""
        self._link(name, "down")

    def connect(self, name: str) -> None:
        """Put the cable in again."""
        self._link(name, "up")

    def bytes_received(self, name: str) -> int:
        """Bytes that the host has received over the network since it was made."""
        told = self.switch.run("ip", "-json", "-statistics", "link", "show", name, timeout_s=10)
        return int(json.loads(told)[0]["stats64"]["tx"]["bytes"])

    def _link(self, name: str, state: str) -> None:
        self.switch.run("ip", "link", "set", name, state, timeout_s=10)


@contextmanager
def network(names: Sequence[str], *, logs: Path) -> Iterator[Network]:
    """Hosts with these names, joined, and an S3 server with a bucket `bucket`; gone at the end.

    The test is skipped where hosts cannot be made.
    """
    reason = why_no_hosts()
    if reason is not None:
        pytest.skip(reason)
    with ExitStack() as stack:
        addresses = {"switch": SWITCH_ADDRESS}
        addresses |= {name: f"10.77.0.{number}" for number, name in enumerate(names, start=11)}
        switch = stack.enter_context(_host("switch", addresses))
        for order in (
            "link add bridge0 type bridge",
            f"address add {SWITCH_ADDRESS}/24 dev bridge0",
            "link set bridge0 up",
        ):
            switch.run("ip", *order.split(), timeout_s=10)
        hosts = {}
        for name in names:
            host = stack.enter_context(_host(name, addresses))
            _plug_in(switch, host)
            hosts[name] = host
        made = Network(switch, hosts)
        _serve_s3(switch, stack.enter_context((logs / "s3.log").open("wb")))
        yield made


@contextmanager
def _host(name: str, addresses: Mapping[str, str]) -> Iterator[Host]:
    """One host, that knows the others' names; nobody else answers for names, so none is waited for.

    A name server that cannot be reached costs every start of a role minutes.
    """
    known = "".join(f"{address} {host}\n" for host, address in addresses.items())
    apart = ("unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--mount-proc")
    bound = ("setpriv", "--pdeathsig", "KILL", *apart, "--fork", "--kill-child")
    first = subprocess.Popen(
        [*bound, "sh", "-c", FIRST_PROCESS, "sh", name, known],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert first.stdout is not None
    ends = first.pid
    try:
        told = first.stdout.readline()
        assert told == "ready\n", f"{name} was not made: {told}{first.stdout.read()}"
        [child] = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
        ends = int(child)  # the kernel ends all processes in it before it is gone itself
        yield Host(name, addresses[name], ends)
    finally:
        os.kill(ends, signal.SIGKILL)
        first.wait(timeout=30)
        first.stdout.close()


def _plug_in(switch: Host, host: Host) -> None:
    """A cable from the host to the switch; the host's end is called eth0."""
    subprocess.run(
        [
            *("nsenter", "--target", str(switch.pid), "--net", "ip", "link", "add", host.name),
            *("type", "veth", "peer", "name", "eth0", "netns", str(host.pid)),
        ],
        check=True,
        timeout=10,
    )
    switch.run("ip", "link", "set", host.name, "master", "bridge0", "up", timeout_s=10)
    for order in (
        f"address add {host.address}/24 dev eth0",
        "link set eth0 up",
        f"route add default via {SWITCH_ADDRESS}",  # programs ask for a route to find their address
    ):
        host.run("ip", *order.split(), timeout_s=10)


def _serve_s3(switch: Host, output: IO[Any]) -> None:
    serve = (sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", str(S3_PORT))
    switch.start(*serve, env=os.environ | {"HOME": "/tmp/home"}, output=output)
    make = (
        "import time, urllib.request as r\n"
        f"order = r.Request('http://{SWITCH_ADDRESS}:{S3_PORT}/bucket', method='PUT')\n"
        "for attempt in range(300):\n"
        "    try:\n        r.urlopen(order, timeout=10).read(); break\n"
        "    except OSError: time.sleep(0.1)\n"
        "else: raise SystemExit('no S3 server')\n"
    )
    switch.run(sys.executable, "-c", make, timeout_s=60)
