"""What a deployed run tries again by itself, and how often."""

import pytest

from alignment.errors import AbsentClusterError, ClusterError, LostActorError
from flows import deployed_run


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch):
    monkeypatch.setattr(deployed_run, "_PAUSE_S", 0.0)


def body_that_fails(with_errors):
    left = list(with_errors)

    def body():
        if left:
            raise left.pop(0)

    return body


def test_lost_actors_and_an_absent_ray_are_tried_again():
    warned = []
    errors = [LostActorError("policy rank 0 died"), AbsentClusterError("no answer")]
    deployed_run.tried_again(body_that_fails(errors), warned.append)
    assert ["policy rank 0 died" in warned[0], "no answer" in warned[1]] == [True, True]
    assert "2 of 5" in warned[1]


def test_tries_are_bounded():
    warned = []
    with pytest.raises(LostActorError):
        deployed_run.tried_again(body_that_fails([LostActorError("x")] * 6), warned.append)
    assert len(warned) == 5


def test_other_errors_end_the_run_at_once():
    with pytest.raises(ClusterError, match="does not fit"):
        deployed_run.tried_again(body_that_fails([ClusterError("does not fit")]), pytest.fail)
