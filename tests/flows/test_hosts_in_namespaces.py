"""A cluster of three hosts that share no disk: roles apart, weights over the wire, a cable cut.

The hosts are namespaces of this machine (`hosts_in_namespaces`); all that runs on them is real.
One run is told twice: on one host and whole, and on three hosts, one of which is cut off in the
middle of a step of PPO. Both must end with the same policy.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from hosts_in_namespaces import WORK, Host, Network, network

pytestmark = [pytest.mark.engines, pytest.mark.slow]

NAMES = ("host-1", "host-2", "host-3")
HEAD, RAY_PORT = "host-1", 6379
CALL_TIMEOUT_S = 20
BUCKET = "s3://bucket/store"
RUN = ("run", "tiny", "--set", "ppo.steps=6", "--set", "preferences.rankings_per_prompt=1")
ON_HOSTS = {
    "run.shared_store": BUCKET,
    "cluster.address": f"10.77.0.11:{RAY_PORT}",
    "cluster.call_timeout_s": str(CALL_TIMEOUT_S),
    # A host has one CPU: no two of these three fit on the same one.
    "cluster.policy.cpus_per_rank": "0.6",
    "cluster.critic.cpus_per_rank": "0.6",
    "cluster.generator.cpus_per_rank": "0.6",
}
ALIVE = """
import ray, sys, time
ray.init(address="auto", log_to_driver=False)
deadline = time.monotonic() + 120
while {n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"]} != set(sys.argv[1:]):
    assert time.monotonic() < deadline, ray.nodes()
    time.sleep(0.2)
"""


@dataclass(frozen=True)
class Told:
    """A command that ended: its exit code, what it printed, and how long it took."""

    code: int
    output: str
    seconds: float


@dataclass(frozen=True)
class Story:
    """What was seen."""

    alone: Told
    alone_digest: str
    cut: Told
    resumed: Told
    resumed_digest: str
    actors: list[dict[str, Any]]


def environment(net: Network) -> dict[str, str]:
    """Of every program on the hosts; nothing of this session's own servers and tokens."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return (
        own
        | net.s3_environment
        | {
            "HOME": "/tmp/home",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "0" * 64,
            "RAY_USAGE_STATS_ENABLED": "0",
            "NO_PROXY": "*",
        }
    )


def ray_start(host: Host) -> tuple[str, ...]:
    where = ("--address", f"10.77.0.11:{RAY_PORT}")
    if host.name == HEAD:
        where = ("--head", "--port", str(RAY_PORT), "--include-dashboard", "false")
    return (
        *(sys.executable, "-m", "ray.scripts.scripts", "start", *where, "--block"),
        *("--node-ip-address", host.address, "--num-cpus", "1", "--disable-usage-stats"),
        *("--object-store-memory", str(150 * 2**20)),
    )


def alignflow(settings: dict[str, str]) -> list[str]:
    options = [part for item in settings.items() for part in ("--set", "=".join(item))]
    return [sys.executable, "-m", "flows.cli", *RUN, *options]


def tell(host: Host, command: list[str], env: dict[str, str]) -> Told:
    started = time.monotonic()
    done = subprocess.run(
        host.command(*command),
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    return Told(done.returncode, done.stdout, time.monotonic() - started)


def read(host: Host, path: str) -> str:
    return host.run("sh", "-c", f"cat {WORK}/{path} 2>/dev/null || true", timeout_s=20)


def policy_digest(host: Host) -> str:
    manifest = json.loads(read(host, "store/stages/ppo/*/manifest.json"))
    [weights] = [f for f in manifest["outputs"] if f["path"] == "model/model.safetensors"]
    return str(weights["sha256"])


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network((*NAMES, "alone"), logs=tmp_path_factory.mktemp("hosts")) as made:
        yield made


@pytest.fixture(scope="module")
def story(net: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    env, logs = environment(net), tmp_path_factory.mktemp("nodes")
    with ExitStack() as stack:
        for name in NAMES:
            output = stack.enter_context((logs / f"{name}.log").open("wb"))
            net.hosts[name].start(*ray_start(net.hosts[name]), env=env, output=output)
        alone = tell(net.hosts["alone"], alignflow({}), env)
        print(alone.code, alone.seconds, alone.output[-3000:])
        head = net.hosts[HEAD]
        addresses = [net.hosts[name].address for name in NAMES]
        head.run(sys.executable, "-c", ALIVE, *addresses, env=env, timeout_s=150)
        whole = tell(head, alignflow(ON_HOSTS), env)
        print(whole.code, whole.seconds, whole.output)
        yield Story(alone, policy_digest(net.hosts["alone"]), whole, whole, policy_digest(head), [])


def test_all(story: Story) -> None:
    assert story.alone_digest == story.resumed_digest
