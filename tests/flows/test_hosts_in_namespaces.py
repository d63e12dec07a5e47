"""A cluster of three hosts that share no disk: roles apart, weights over the wire, a cable cut.

The hosts are namespaces of this machine (`hosts_in_namespaces`); all that runs on them is real.
A fourth host makes what comes before PPO and publishes it. A run on the cluster fetches that from
S3, is cut off in the middle of a step of PPO, and goes on. Then the fourth host does PPO alone.
"""

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from hosts_in_namespaces import S3_PORT, SWITCH_ADDRESS, Network, network
from ray_on_hosts import RayOnHosts, Told, files_below, read

from flows.exit_codes import FAILED
from flows.summary import Summary

pytestmark = [pytest.mark.engines, pytest.mark.slow]

BEFORE = ("base_model", "data", "sft", "candidates", "preferences", "reward_model")
CLUSTER, CUT, ALONE = ("host-1", "host-2", "host-3"), "host-2", "host-4"
STEPS, CUT_AFTER_STEPS, CALL_TIMEOUT_S = 6, 2, 30
ENDS_WITHIN_S = 75
"""The call's timeout, and what the driver takes to end the other roles and itself."""
PATIENCE_S = 400
"""For a command that is not to be interrupted, on a machine with much else to do."""
SETTINGS = {
    "run.shared_store": "s3://bucket/store",
    "ppo.steps": str(STEPS),
    "preferences.rankings_per_prompt": "1",
}
BEFORE_PPO = {"ppo.steps": "2", "cluster.backend": "local"}
"""Settings of another PPO, done quickly in one process; the stages before it are the same."""
# A host has one CPU: no two of these three fit on the same one.
APART = {f"cluster.{role}.cpus_per_rank": "0.6" for role in ("policy", "critic", "generator")}
PPO_ALONE = """
import sys
from alignment.config import load_config
from flows.pipeline import run
from flows.run_record import RunOptions
from flows.shipped_configs import config_path
run(load_config([config_path("tiny")], sys.argv[1:]), RunOptions(only="ppo"))
"""


@dataclass(frozen=True)
class Story:
    """What was seen: the run that was cut off, the one that went on, and PPO on one host."""

    cut: Told
    seconds_after_cut: float
    checkpoints: list[str]
    resumed: Told
    summary: Summary
    manifest: dict[str, Any]
    weight_bytes: int
    store_files: dict[str, list[str]]
    alone: Told
    manifest_alone: dict[str, Any]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    logs = tmp_path_factory.mktemp("hosts")
    with ExitStack() as stack:
        net = stack.enter_context(network((*CLUSTER, ALONE), logs=logs))
        yield tell(net, RayOnHosts(net, CLUSTER, stack, logs))


def tell(net: Network, cluster: RayOnHosts) -> Story:
    for name in CLUSTER:
        cluster.start_node(name)
    made = cluster.start_run(ALONE, "tiny", SETTINGS | BEFORE_PPO).end(timeout_s=PATIENCE_S)
    assert made.code == 0, made.output
    cluster.wait_until_alive()
    settings = SETTINGS | APART
    settings |= {
        "cluster.address": cluster.address,
        "cluster.call_timeout_s": str(CALL_TIMEOUT_S),
    }
    cut_at, cut = run_and_cut(net, cluster, settings)
    checkpoints = [f for f in files_below(cluster.head, "store/stages/ppo") if "loop.json" in f]

    cluster.wait_until_alive(without=CUT)
    net.connect(CUT)
    cluster.start_again(CUT)
    cluster.wait_until_alive()
    resumed = cluster.start_run(CLUSTER[0], "tiny", settings).end(timeout_s=PATIENCE_S)
    assert resumed.code == 0, resumed.output
    summary = Summary.model_validate_json(read(cluster.head, "runs/tiny/summary.json"))
    hosts = {actor.role: actor.host for actor in summary.actors if actor.stage == "ppo"}
    weight_bytes = cluster.bytes_between(hosts["policy"], hosts["generator"])
    store_files = {name: files_below(host, "/tmp") for name, host in net.hosts.items()}

    manifest = manifest_of_ppo(cluster, CLUSTER[0])
    forget_ppo(net, manifest)
    options = [f"{name}={value}" for name, value in SETTINGS.items()]
    command = (sys.executable, "-c", PPO_ALONE, *options)
    alone = cluster.start(ALONE, *command).end(timeout_s=PATIENCE_S)
    assert alone.code == 0, alone.output
    return Story(
        cut=cut,
        seconds_after_cut=cut.ended_at - cut_at,
        checkpoints=checkpoints,
        resumed=resumed,
        summary=summary,
        manifest=manifest,
        weight_bytes=weight_bytes,
        store_files=store_files,
        alone=alone,
        manifest_alone=manifest_of_ppo(cluster, ALONE, manifest["key"]),
    )


def run_and_cut(net: Network, cluster: RayOnHosts, settings: dict[str, str]) -> tuple[float, Told]:
    """Take out a cable in the middle of a step; when, and how the run ended."""
    run, deadline = cluster.start_run(CLUSTER[0], "tiny", settings), time.monotonic() + PATIENCE_S
    while len(read(cluster.head, "runs/tiny/metrics/ppo.jsonl").splitlines()) < CUT_AFTER_STEPS:
        assert run.process.poll() is None, run.log.read_text()
        assert time.monotonic() < deadline, run.log.read_text()
        time.sleep(0.05)
    net.cut_off(CUT)
    return time.monotonic(), run.end(timeout_s=3 * ENDS_WITHIN_S)


def manifest_of_ppo(cluster: RayOnHosts, name: str, key: str = "*") -> dict[str, Any]:
    """The host's manifest of its only PPO, or of that with this key."""
    manifest: dict[str, Any] = json.loads(
        read(cluster.net.hosts[name], f"store/stages/ppo/{key[:16]}/manifest.json")
    )
    return manifest


def forget_ppo(net: Network, manifest: dict[str, Any]) -> None:
    """Remove the finished PPO from S3, so that the next host does it anew."""
    place = f"bucket/store/stages/ppo/{manifest['key'][:16]}/manifest.json"
    order = f"Request('http://{SWITCH_ADDRESS}:{S3_PORT}/{place}', method='DELETE')"
    code = f"from urllib.request import Request, urlopen; urlopen({order}, timeout=10)"
    net.switch.run(sys.executable, "-c", code, timeout_s=30)


def weights(manifest: dict[str, Any]) -> dict[str, Any]:
    [file] = [f for f in manifest["outputs"] if f["path"] == "model/model.safetensors"]
    return dict(file)


def test_a_host_that_is_cut_off_ends_the_run_in_time_and_is_named(story: Story) -> None:
    assert story.cut.code == FAILED, story.cut.output
    assert story.seconds_after_cut < ENDS_WITHIN_S
    named = rf"alignflow: (policy|critic|generator|reference|reward_model) rank 0 on {CUT} did not "
    said = re.search(rf"{named}answer (\w+) within {CALL_TIMEOUT_S} s", story.cut.output)
    assert said, story.cut.output
    assert f"See that {CUT} can be reached from here." in story.cut.output


def test_the_same_command_goes_on_at_the_newest_checkpoint(story: Story) -> None:
    newest = max(int(s) for f in story.checkpoints for s in re.findall(r"step-(\d+)/", f))
    assert newest >= CUT_AFTER_STEPS - 1  # a step is told, then saved
    assert f"ppo resumes after step {newest}" in story.resumed.output


def test_stages_that_another_host_made_came_by_s3(story: Story) -> None:
    for stage in BEFORE:
        assert re.search(rf"{stage} .* reused", story.cut.output), story.cut.output


def test_policy_critic_and_generator_were_on_three_hosts(story: Story) -> None:
    ppo = {actor.role: actor for actor in story.summary.actors if actor.stage == "ppo"}
    assert {ppo[role].host for role in ("policy", "critic", "generator")} == set(CLUSTER)
    assert "DeepSpeed" in ppo["policy"].engine
    assert "DeepSpeed" in ppo["critic"].engine
    assert "LLM" in ppo["generator"].engine


def test_weights_crossed_the_network_at_every_sync(story: Story) -> None:
    [generator] = [a for a in story.summary.actors if (a.stage, a.role) == ("ppo", "generator")]
    syncs = len(generator.policy_versions)
    assert syncs >= 2
    assert story.weight_bytes >= syncs * weights(story.manifest)["bytes"]


def test_hosts_had_no_file_of_the_store_but_the_models_they_fetched(story: Story) -> None:
    for name in CLUSTER[1:]:
        files = story.store_files[name]
        assert not [f for f in files if "/store/stages/" in f or f.endswith("manifest.json")]
        assert [f for f in files if "alignflow-models" in f], f"{name} has fetched no model"
        assert not [f for f in files if re.search(r"/alignflow-passing-\d+/.*/", f)]


def test_the_policy_is_the_one_that_one_host_makes_alone(story: Story) -> None:
    assert story.manifest_alone["key"] == story.manifest["key"]
    assert story.manifest_alone["created"] > story.manifest["created"], "it was made, not fetched"
    assert weights(story.manifest_alone) == weights(story.manifest)
