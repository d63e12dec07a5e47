"""Correlation of two series."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alignment.errors import DataError


def pearson_correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Linear correlation of `x` and `y`, both [n]; nan where either does not vary.

    Raises:
        DataError: lengths differ, or fewer than two values.
    """
    left, right = _pair(x, y)
    left, right = left - left.mean(), right - right.mean()
    scale = float(np.sqrt((left @ left) * (right @ right)))
    return float(left @ right) / scale if scale > 0 else float("nan")


def spearman_correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Correlation of the ranks of `x` and `y`; equal values share their mean rank.

    nan where either does not vary.

    Raises:
        DataError: lengths differ, or fewer than two values.
    """
    left, right = _pair(x, y)
    return pearson_correlation(mean_ranks(left), mean_ranks(right))


def mean_ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Rank of each value from 1, ascending; equal values get the mean of their ranks."""
    _, place, counts = np.unique(
        np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True
    )
    last = np.cumsum(counts)
    return np.asarray((last - 0.5 * (counts - 1))[place], dtype=np.float64)


def _pair(x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    left, right = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if left.ndim != 1 or left.shape != right.shape or left.size < 2:
        raise DataError(
            f"series of shapes {left.shape} and {right.shape}: a correlation needs two of the "
            "same length, at least 2"
        )
    return left, right
