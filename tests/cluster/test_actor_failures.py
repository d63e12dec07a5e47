"""Whose error the user sees when an actor refuses, crashes, hangs or dies."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from role_factory import (
    PlainActor,
    negative_logprob,
    random_batch,
    start_group,
    trainable_spec,
)
from test_nothing_left import wait_until_gone

from alignment.cluster.groups import GRACE_S, ActorGroup, Deadline, wait_for_all
from alignment.cluster.roles import RemotePolicy
from alignment.cluster.session import Cluster
from alignment.cluster.trainable import TrainableActor
from alignment.errors import ClusterError, NumericsError
from alignment.role_specs import GeneratorSpec

pytestmark = pytest.mark.engines


@pytest.fixture
def group(cluster: Cluster) -> Iterator[ActorGroup]:
    actors = [
        ray.remote(PlainActor).options(num_cpus=0.1, max_restarts=0).remote(rank=rank)
        for rank in range(2)
    ]
    group = ActorGroup("critic", actors, call_timeout_s=60.0, logs=cluster.logs)
    group.remember_processes(group.call("describe"))
    yield group
    group.end("the test is over")


def test_answers_come_in_rank_order(group: ActorGroup) -> None:
    assert group.call("answer") == [0, 1]
    assert group.call_each("answer", [()]) == [0]


def test_the_failing_ranks_own_error_is_raised_and_its_waiting_peers_end(
    group: ActorGroup,
) -> None:
    with pytest.raises(NumericsError, match="rank 1 has seen a NaN") as failure:
        group.call("refuse_on", 1)
    assert type(failure.value) is NumericsError
    with pytest.raises(ClusterError, match=r"critic was ended .* rank 1 has seen a NaN"):
        group.call("answer")


def test_a_crash_is_named_with_role_rank_operation_and_place(group: ActorGroup) -> None:
    with pytest.raises(ClusterError, match="critic rank 0 failed in crash: KeyError") as failure:
        group.call("crash")
    assert 'raise KeyError("a mistake of ours")' in str(failure.value)
    assert group.call("answer") == [0, 1], "a crash that every rank reports ends nobody"


def test_a_full_gpu_is_named_with_what_to_do(group: ActorGroup) -> None:
    with pytest.raises(ClusterError) as failure:
        group.call("fill_gpu")
    message = str(failure.value)
    assert message.startswith("critic rank 0 has no GPU memory left in fill_gpu: CUDA out of mem")
    assert "of which 681.56 MiB is free. Lower the stage's `tokens_per_microbatch`" in message
    assert "Traceback" not in message


def test_a_cache_too_small_for_one_sequence_is_named_with_its_setting(
    cluster: Cluster, tiny_model: Path
) -> None:
    config = cluster.config.model_copy(update={"kv_cache_gib": 0.0002})
    spec = GeneratorSpec(name="generator", model_folder=tiny_model, max_sequence_tokens=512)
    with pytest.raises(ClusterError) as failure:
        Cluster(config, logs=cluster.logs).start_roles([spec])
    message = str(failure.value)
    assert message.startswith(
        "generator: `cluster.kv_cache_gib` is 0.0002, which does not hold one"
    )
    assert "sequence of 512 tokens" in message
    assert "GiB KV cache is needed" in message
    assert "gpu_memory_utilization" not in message


def test_a_killed_rank_is_named_and_not_its_complaining_peer(group: ActorGroup) -> None:
    pid = group.call("describe")[1]["pid"]
    with pytest.raises(ClusterError) as failure:
        group.call("die_on", 1)
    message = str(failure.value)
    assert message.startswith(f"critic rank 1 (process {pid}) died in die_on: ")
    assert "last words" in message, "the end of its log"
    assert "killed from outside" in message
    with pytest.raises(ClusterError, match="critic rank 1"):
        group.call("answer")


def test_a_call_that_takes_too_long_names_the_setting(group: ActorGroup) -> None:
    group._call_timeout_s = 0.5
    expected = r"critic rank 0, rank 1 did not answer sleep within 0\.5 s\n(.|\n)*call_timeout_s"
    with pytest.raises(ClusterError, match=expected):
        group.call("sleep", 3600.0)


def test_ranks_on_another_host_are_named_with_it(group: ActorGroup) -> None:
    described = [facts | {"host": "host-7"} for facts in group.call("describe")]
    group.remember_processes(described)
    group._call_timeout_s = 0.5
    with pytest.raises(ClusterError) as failure:
        group.call("sleep", 3600.0)
    message, pid = str(failure.value), described[0]["pid"]
    ranks = "critic rank 0 on host-7, rank 1 on host-7"
    assert message.startswith(f"{ranks} did not answer sleep within 0.5 s\n")
    assert "See that host-7 can be reached from here." in message
    assert f"its log is on host-7: {group.logs}/worker-*-{pid}.err" in message


def test_a_death_on_another_host_is_named_with_it(group: ActorGroup) -> None:
    described = [facts | {"host": "host-7"} for facts in group.call("describe")]
    group.remember_processes(described)
    with pytest.raises(ClusterError) as failure:
        group.call("die_on", 1)
    pid = described[1]["pid"]
    assert str(failure.value).startswith(f"critic rank 1 (process {pid} on host-7) died in die_on")


def test_a_stopped_rank_is_named_and_ended(group: ActorGroup) -> None:
    pids = [facts["pid"] for facts in group.call("describe")]
    group._call_timeout_s = 2.0
    os.kill(pids[1], signal.SIGSTOP)
    with pytest.raises(ClusterError) as failure:
        group.call("meet")
    message = str(failure.value)
    assert message.startswith("critic rank 1 did not answer meet within 2 s\n")
    assert f"rank 1 (process {pids[1]}) is stopped by a signal\n" in message
    wait_until_gone(set(pids))


@pytest.mark.slow
def test_a_stalled_collective_ends_in_time_and_names_who_is_stopped(
    cluster: Cluster, tiny_model: Path
) -> None:
    spec = trainable_spec("policy", tiny_model, ranks=2)
    group = start_group(cluster, TrainableActor, spec, cluster.config)
    pids = [facts["pid"] for facts in group.call("describe")]
    policy, batch = RemotePolicy(group), random_batch(6, seed=0)
    tokens = float(batch.response_mask.sum())
    policy.forward_backward(batch, negative_logprob, denominator=tokens)
    policy.step()
    group._call_timeout_s = 10.0
    os.kill(pids[1], signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(ClusterError) as failure:
        policy.forward_backward(batch, negative_logprob, denominator=tokens)
    assert time.monotonic() - began < 10.0 + GRACE_S + 10.0
    assert "did not answer forward_backward within 10 s\n" in str(failure.value)
    assert f"rank 1 (process {pids[1]}) is stopped by a signal, rank 0" in str(failure.value)
    wait_until_gone(set(pids))


def test_the_first_failure_of_several_groups_is_raised_at_once(
    group: ActorGroup, cluster: Cluster
) -> None:
    actor = ray.remote(PlainActor).options(num_cpus=0.1).remote(rank=0)
    other = ActorGroup("policy", [actor], call_timeout_s=60.0, logs=cluster.logs)
    slow = group.submit("sleep", [(3600.0,)] * 2)
    with pytest.raises(NumericsError, match="rank 0 has seen a NaN"):
        wait_for_all([slow, other.submit("refuse_on", [(0,)])], Deadline.after(60.0, "test"))
    other.end("the test is over")
