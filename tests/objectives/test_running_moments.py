import statistics

import pytest

from alignment.objectives.running_moments import RunningMoments

VALUES = [1e6 + v for v in (0.5, -1.0, 2.0, 7.5, 0.0, 3.25, -4.0)]


@pytest.mark.parametrize("cuts", [(7,), (1, 3, 7), (2, 2, 6, 7)])
def test_moments_are_those_of_all_values_however_they_came(cuts):
    moments, start = RunningMoments(), 0
    for end in cuts:
        moments = moments.add(VALUES[start:end])
        start = end
    assert moments.count == 7
    assert moments.mean == pytest.approx(statistics.mean(VALUES), abs=1e-9)
    assert moments.deviation == pytest.approx(statistics.stdev(VALUES), rel=1e-9)


def test_fewer_than_two_values_have_no_deviation():
    assert RunningMoments().deviation == 0.0
    assert RunningMoments().add([3.0]).deviation == 0.0
