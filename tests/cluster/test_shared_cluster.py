"""A cluster that somebody else runs: use it, and leave it as it was."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from alignment.cluster import Cluster as ClusterClass
from alignment.cluster.runtime import ray_runtime
from alignment.cluster.session import Cluster
from alignment.config import ClusterConfig
from alignment.errors import ClusterError

pytestmark = pytest.mark.engines

GUEST = """
import sys
from pathlib import Path
from alignment.cluster import Cluster
from alignment.config import ClusterConfig
from alignment.errors import ClusterError
from alignment.role_specs import FrozenSpec

spec = FrozenSpec(name="guest", kind="language", model_folder=Path(sys.argv[2]))
with Cluster.open(ClusterConfig(address=sys.argv[1]), log_folder=Path(sys.argv[3])) as cluster:
    [facts] = cluster.start_roles([spec])["guest"].describe()
    print("STARTED", facts["engine"], flush=True)
"""


def test_a_guest_leaves_no_actor_and_no_reservation(
    cluster: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    wait_until_only_we_reserve(cluster)  # actors of earlier tests may still be going
    address = ray.get_runtime_context().gcs_address
    guest = subprocess.run(
        [sys.executable, "-c", GUEST, address, str(tiny_model), str(tmp_path)],
        env=os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "STARTED torch" in guest.stdout, guest.stderr
    assert guest.returncode == 0
    wait_until_only_we_reserve(cluster)


def test_an_address_where_nobody_listens_is_refused_at_once(tmp_path: Path) -> None:
    arguments = ["127.0.0.1:1", "no-model", str(tmp_path)]
    guest = subprocess.run(
        [sys.executable, "-c", GUEST, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert guest.returncode == 1
    assert "`cluster.address` '127.0.0.1:1' does not answer" in guest.stderr


def test_a_process_uses_one_cluster_at_a_time(cluster: Cluster, tmp_path: Path) -> None:
    with (
        pytest.raises(ClusterError, match="already uses a Ray cluster"),
        ClusterClass.open(ClusterConfig(), log_folder=tmp_path),
    ):
        pass
    with (
        pytest.raises(ClusterError, match="already uses a Ray cluster"),
        ray_runtime(ClusterConfig(), log_folder=tmp_path),
    ):
        pass


def wait_until_only_we_reserve(cluster: Cluster) -> None:
    ours = sum(b.cpus for reserved, _ in cluster._reserved for b in reserved.placement.bundles)
    expected = ray.cluster_resources()["CPU"] - ours
    deadline = time.monotonic() + 30
    while (free := ray.available_resources().get("CPU", 0.0)) != pytest.approx(expected):
        assert time.monotonic() < deadline, f"{free} CPUs are free instead of {expected}"
        time.sleep(0.2)


def token() -> str:
    from alignment.cluster.runtime import _token_of_this_process

    return _token_of_this_process()
