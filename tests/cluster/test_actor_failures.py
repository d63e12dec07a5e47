"""Whose error the user sees when an actor refuses, crashes, hangs or dies."""

from collections.abc import Iterator

import pytest
import ray
from role_factory import PlainActor

from alignment.cluster.groups import ActorGroup, Deadline, wait_for_all
from alignment.cluster.session import Cluster
from alignment.errors import ClusterError, NumericsError

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


def test_the_first_failure_of_several_groups_is_raised_at_once(
    group: ActorGroup, cluster: Cluster
) -> None:
    actor = ray.remote(PlainActor).options(num_cpus=0.1).remote(rank=0)
    other = ActorGroup("policy", [actor], call_timeout_s=60.0, logs=cluster.logs)
    slow = group.submit("sleep", [(3600.0,)] * 2)
    with pytest.raises(NumericsError, match="rank 0 has seen a NaN"):
        wait_for_all([slow, other.submit("refuse_on", [(0,)])], Deadline.after(60.0, "test"))
    other.end("the test is over")
