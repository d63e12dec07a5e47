"""A Ray cluster on hosts made of namespaces, and `alignflow` commands on them."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from hosts_in_namespaces import WORK, Host, Network

RAY_PORT, OBJECT_PORT, DASHBOARD_PORT = 6379, 8076, 8265
OBJECT_STORE_BYTES = 150 * 2**20
ALIVE = """
import socket, sys, time, ray
deadline = time.monotonic() + 150
address, wanted = sys.argv[1], set(sys.argv[2:])
while True:
    try:
        socket.create_connection(address.split(":"), timeout=5).close()
        ray.init(address=address, log_to_driver=False, configure_logging=False)
        break
    except Exception as error:
        assert time.monotonic() < deadline, error
        time.sleep(0.5)
while {n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"]} != wanted:
    assert time.monotonic() < deadline, ray.nodes()
    time.sleep(0.2)
"""


@dataclass(frozen=True)
class Told:
    """A command that ended: its exit code, what it printed, and when (monotonic seconds)."""

    code: int
    output: str
    ended_at: float


class Command:
    """A command at work on a host."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self.log = log

    def end(self, *, timeout_s: float) -> Told:
        """Wait until it has ended."""
        try:
            code = self.process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended in {timeout_s} s:\n{self.log.read_text()}") from None
        return Told(code, self.log.read_text(), time.monotonic())


class RayOnHosts:
    """Ray nodes, one a host with one CPU; the first host is the head.

    Its dashboard, which takes jobs, costs memory and is started where asked for.
    """

    def __init__(
        self,
        net: Network,
        names: tuple[str, ...],
        stack: ExitStack,
        logs: Path,
        *,
        dashboard: bool = False,
    ) -> None:
        self.net = net
        self.dashboard = dashboard
        self.names = names
        self.head = net.hosts[names[0]]
        self.address = f"{self.head.address}:{RAY_PORT}"
        self.job_server = f"http://{self.head.address}:{DASHBOARD_PORT}"
        self._stack = stack
        self._logs = logs
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """Of every program on the hosts, without what this session's own servers need."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        ours = {
            "HOME": "/tmp/home",
            "NO_PROXY": "*",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "0" * 64,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
        }
        return own | self.net.s3_environment | ours

    def start_node(self, name: str) -> None:
        """Start Ray on a host, as an operator would; it is not waited for."""
        host, where = self.net.hosts[name], ("--address", self.address)
        if host is self.head:
            where = ("--head", "--port", str(RAY_PORT), "--include-dashboard")
            where = (*where, str(self.dashboard).lower(), "--dashboard-host", host.address)
        command = (
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *where),
            *("--node-ip-address", host.address, "--num-cpus", "1", "--disable-usage-stats"),
            *("--object-store-memory", str(OBJECT_STORE_BYTES)),
            *("--object-manager-port", str(OBJECT_PORT)),
        )
        self._nodes[name] = self.start(name, *command).process

    def wait_until_alive(self, *, without: str | None = None) -> None:
        """Until exactly these hosts, or all but one of them, are alive for the head."""
        names = [name for name in self.names if name != without]
        addresses = [self.net.hosts[name].address for name in names]
        check = (sys.executable, "-c", ALIVE, self.address, *addresses)
        self.head.run(*check, env=self.environment, timeout_s=200)

    def start_again(self, name: str) -> None:
        """Start a node anew where the head gave one up, whose processes end when they hear so."""
        self._nodes[name].wait(timeout=120)
        self.start_node(name)

    def start(self, name: str, *arguments: str) -> Command:
        """A command on a host."""
        log = self._logs / f"{name}-{time.monotonic_ns()}.log"
        output = self._stack.enter_context(log.open("wb"))
        host = self.net.hosts[name]
        return Command(host.start(*arguments, env=self.environment, output=output), log)

    def start_run(self, name: str, config: str, settings: Mapping[str, str]) -> Command:
        """`alignflow run` on a host."""
        options = [part for item in settings.items() for part in ("--set", "=".join(item))]
        return self.start(name, sys.executable, "-m", "flows.cli", "run", config, *options)

    def bytes_between(self, source: str, target: str) -> int:
        """Bytes of objects that `target` has received from `source` over connections still open."""
        listening = f"( sport = :{OBJECT_PORT} and dst {self.net.hosts[source].address} )"
        told = self.net.hosts[target].run("ss", "-tinH", listening, timeout_s=20)
        return sum(int(number) for number in re.findall(r"bytes_received:(\d+)", told))


def read(host: Host, path: str) -> str:
    """A file in the host's own folder; empty where there is none."""
    return host.run("sh", "-c", f"cat {WORK}/{path} 2>/dev/null || true", timeout_s=20)


def files_below(host: Host, *folders: str) -> list[str]:
    """Files of the host's own below these folders, as far as they are there."""
    found = host.run("sh", "-c", f"find {' '.join(folders)} -type f || true", timeout_s=20)
    return found.splitlines()
