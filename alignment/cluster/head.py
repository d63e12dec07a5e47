"""A Ray head on this machine, as a command that some supervisor keeps alive; loads no Ray."""

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

NO_IDLE_WORKERS = {"RAY_prestart_worker_first_driver": "0"}
"""Ray would start a worker a CPU in advance; a role has an environment of its own, so none fits."""


def head_command(
    *, port: int, dashboard_port: int, temp_folder: Path, object_store_gib: float
) -> list[str]:
    """`ray start` that stays in the foreground; its own process ends when one of Ray's does.

    Args:
        port: of the head; with `node_address` it makes `cluster.address`.
        dashboard_port: of the dashboard and the job server, on loopback.
        temp_folder: Ray's sessions; short, because names of sockets are limited to 107 bytes.
        object_store_gib: size of the object store in shared memory.
    """
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--port", str(port), "--node-ip-address", node_address()),
        *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard_port)),
        *("--include-dashboard", "true", "--disable-usage-stats"),
        # A fixed port otherwise: beside another Ray on this machine no job could be submitted.
        *("--dashboard-agent-listen-port", "0"),
        *("--object-store-memory", str(int(object_store_gib * 2**30))),
        *("--num-cpus", str(os.cpu_count() or 1)),
        *("--temp-dir", str(temp_folder), "--log-style", "record", "--log-color", "false"),
    ]


def head_environment(token_file: Path) -> Mapping[str, str]:
    """What the head, its clients and the Jobs API must agree on."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        **NO_IDLE_WORKERS,
    }


def node_address() -> str:
    """The address by which this machine's Ray is found; loopback is rewritten by Ray itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # documentation network: chooses a route, sends nothing
            return str(probe.getsockname()[0])
        except OSError:
            pass
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"
