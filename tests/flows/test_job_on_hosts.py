"""PPO as a Ray job on two hosts that share no disk, for a run on a third one outside the cluster.

Models, checkpoints and the result travel by S3; nothing else joins the three.
"""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hosts_in_namespaces import network
from ray_on_hosts import RayOnHosts, Told, files_below, read

from flows.summary import Summary

pytestmark = [pytest.mark.engines, pytest.mark.slow]

CLUSTER, OUTSIDE = ("host-1", "host-2"), "host-3"
PATIENCE_S = 420
SETTINGS = {"run.shared_store": "s3://bucket/store", "preferences.rankings_per_prompt": "1"}
BEFORE_PPO = {"ppo.steps": "2", "cluster.backend": "local"}
STEPS = 3
# A host has one CPU: no two of these fit on the same one.
AS_JOB = {"ppo.steps": str(STEPS)} | {
    f"cluster.{role}.cpus_per_rank": "0.6" for role in ("policy", "generator")
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RayOnHosts, Told]]:
    logs = tmp_path_factory.mktemp("hosts")
    with ExitStack() as stack:
        net = stack.enter_context(network((*CLUSTER, OUTSIDE), logs=logs))
        cluster = RayOnHosts(net, CLUSTER, stack, logs, dashboard=True)
        for name in CLUSTER:
            cluster.start_node(name)
        made = cluster.start_run(OUTSIDE, "tiny", SETTINGS | BEFORE_PPO).end(timeout_s=PATIENCE_S)
        assert made.code == 0, made.output
        cluster.wait_until_alive()
        settings = SETTINGS | AS_JOB | {"cluster.job_server": cluster.job_server}
        told = cluster.start_run(OUTSIDE, "tiny", settings).end(timeout_s=PATIENCE_S)
        assert told.code == 0, told.output
        yield cluster, told


def test_the_job_spread_its_roles_over_the_cluster(done: tuple[RayOnHosts, Told]) -> None:
    cluster, told = done
    assert re.search(rf"Ray job alignflow-ppo-\S+: {cluster.job_server}", told.output)
    outside = cluster.net.hosts[OUTSIDE]
    summary = Summary.model_validate_json(read(outside, "runs/tiny/summary.json"))
    hosts = {actor.role: actor.host for actor in summary.actors if actor.stage == "ppo"}
    assert {hosts["policy"], hosts["generator"]} == set(CLUSTER)
    assert OUTSIDE not in hosts.values()


def test_its_result_and_its_metrics_came_home(done: tuple[RayOnHosts, Told]) -> None:
    cluster, _ = done
    outside = cluster.net.hosts[OUTSIDE]
    lines = read(outside, "runs/tiny/metrics/ppo.jsonl").splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [f for f in files_below(outside, "store/stages/ppo") if f.endswith("model.safetensors")]


def test_only_the_head_has_a_store(done: tuple[RayOnHosts, Told]) -> None:
    cluster, _ = done
    head, other = (files_below(cluster.net.hosts[name], "/tmp") for name in CLUSTER)
    assert [f for f in head if "/runs/tiny/jobs/tiny/run.json" in f]
    assert [f for f in head if re.search(r"/store/stages/ppo/.*/manifest.json", f)]
    assert not [f for f in other if "/store/" in f]
    assert not [f for f in head + other if re.search(r"/alignflow-passing-\d+/.*/", f)]
