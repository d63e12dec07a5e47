"""A job server that is silent, broken or ends a connection: told in time, and nothing is lost."""

import socket
import time
from collections.abc import Iterator

import pytest
from ailing_job_server import AilingJobs, ailing_job_server, lines_within

from alignment.cluster import jobs as cluster_jobs
from alignment.cluster.jobs import JobServer
from alignment.errors import AbsentClusterError, ClusterError


@pytest.fixture
def ailing() -> Iterator[AilingJobs]:
    with ailing_job_server(state="RUNNING") as ailing:
        yield ailing


def test_a_server_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_jobs, "_REQUEST_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(AbsentClusterError, match="does not answer"):
            JobServer(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - began < 10


def test_what_a_job_holds_cannot_be_told(ailing: AilingJobs) -> None:
    with pytest.raises(ClusterError, match="the tables are away"):
        JobServer(ailing.url).held("01000000")


def test_lines_end_where_the_followed_ones_end(ailing: AilingJobs) -> None:
    ailing.log = "one\u2028half\ntwo\x85\x0chalf\nthree\n"
    assert JobServer(ailing.url).log("a-job") == ["one\u2028half", "two\x85\x0chalf", "three"]
    ailing.log = "one\nno end"
    assert JobServer(ailing.url).log("a-job") == ["one", "no end"]


def test_a_connection_that_ended_in_order_is_made_anew(ailing: AilingJobs) -> None:
    ailing.tails = ["one\ntw", "one\ntwo\nthree\n"]
    with JobServer(ailing.url).follow("a-job") as log:
        assert lines_within(log, 3, timeout_s=10) == ["one", "two", "three"]
