import math

import numpy as np
import pytest

from alignment.errors import DataError
from alignment.statistics.correlation import (
    mean_ranks,
    pearson_correlation,
    spearman_correlation,
)

# Anscombe 1973, The American Statistician 27, 17-21: first set.
X = [10, 8, 13, 9, 11, 14, 6, 4, 12, 7, 5]
Y = [8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68]


def test_pearson_equals_published_and_numpy():
    assert pearson_correlation(X, Y) == pytest.approx(0.81642, abs=5e-6)
    assert pearson_correlation(X, Y) == pytest.approx(np.corrcoef(X, Y)[0, 1], rel=1e-12)
    assert pearson_correlation(X, [-y for y in Y]) == pytest.approx(-0.81642, abs=5e-6)


def test_spearman_equals_the_formula_for_distinct_ranks():
    """1 - 6 sum d^2 / (n (n^2 - 1)), d the differences of ranks."""
    ranks = np.argsort(np.argsort(X)) - np.argsort(np.argsort(Y))
    expected = 1 - 6 * float(ranks @ ranks) / (11 * 120)
    assert spearman_correlation(X, Y) == pytest.approx(expected, rel=1e-12)


def test_spearman_sees_order_only():
    assert spearman_correlation(X, np.exp(np.array(X))) == pytest.approx(1.0)
    assert pearson_correlation(X, np.exp(np.array(X))) < 0.8


def test_equal_values_share_their_mean_rank():
    assert mean_ranks([3.0, 1.0, 3.0, 2.0, 3.0]).tolist() == [4.0, 1.0, 4.0, 2.0, 4.0]
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5.
    assert spearman_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(22.5))


def test_a_constant_has_no_correlation():
    assert math.isnan(pearson_correlation([1, 1, 1], [1, 2, 3]))
    assert math.isnan(spearman_correlation([1, 2, 3], [2, 2, 2]))


@pytest.mark.parametrize(("x", "y"), [([1], [1]), ([1, 2], [1, 2, 3]), ([[1, 2]], [[1, 2]])])
def test_series_that_do_not_pair_up_are_refused(x, y):
    with pytest.raises(DataError, match="the same length"):
        pearson_correlation(x, y)
