"""Means and shares with intervals.

Responses to one prompt resemble each other, so the interval resamples whole prompts (clusters)
with replacement: resampling single responses would make it too narrow. Percentile intervals:
Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13; of clusters: Davison
and Hinkley 1997, "Bootstrap Methods and their Application", section 3.8.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alignment.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate `value` with its interval, from `n` values in `clusters` clusters."""

    value: float
    low: float
    high: float
    n: int
    clusters: int


def bootstrap_mean(
    values: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    seed: int,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Mean of `values` [n] with its interval; `clusters` [n] name each value's prompt.

    Without `clusters` each value is its own. For an accuracy give 1 where right, 0 where wrong
    and 0.5 for a tie; for a paired difference of equally many values give the differences.
    Every value weighs the same: average within prompts first to weigh prompts the same.

    Raises:
        DataError: a value that is not finite, lengths that differ, or fewer than two clusters.
    """
    totals = _ClusterTotals.of(values, clusters)
    sums, counts = totals.sums, totals.counts
    return _interval(
        lambda drawn: float(sums[drawn].sum() / counts[drawn].sum()),
        n=int(counts.sum()),
        clusters=len(sums),
        seed=seed,
        resamples=resamples,
        confidence=confidence,
    )


def bootstrap_difference(
    treated: ArrayLike,
    treated_clusters: Sequence[Hashable],
    baseline: ArrayLike,
    baseline_clusters: Sequence[Hashable],
    *,
    seed: int,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Mean of `treated` minus mean of `baseline`, paired by cluster.

    Both must speak about the same prompts, if not equally often: each resample draws prompts and
    takes both sides' values of them, so what a prompt gives to both sides cancels. `n` counts
    the treated values.

    Raises:
        DataError: the sides' clusters differ or are fewer than two, or a value is not finite.
    """
    left = _ClusterTotals.of(treated, treated_clusters)
    right = _ClusterTotals.of(baseline, baseline_clusters)
    if left.names != right.names:
        alone = sorted(map(str, set(left.names) ^ set(right.names)))
        raise DataError(
            f"{len(alone)} clusters are on one side only (first: {alone[0]!r}): a paired "
            "difference needs values of both sides for every prompt"
        )

    def difference(drawn: NDArray[np.int64]) -> float:
        treated_mean = left.sums[drawn].sum() / left.counts[drawn].sum()
        return float(treated_mean - right.sums[drawn].sum() / right.counts[drawn].sum())

    return _interval(
        difference,
        n=int(left.counts.sum()),
        clusters=len(left.names),
        seed=seed,
        resamples=resamples,
        confidence=confidence,
    )


def wilson_interval(successes: float, n: int, *, confidence: float = 0.95) -> Interval:
    """Share of `n` independent trials with its score interval; not degenerate at 0 or 1.

    Raises:
        DataError: n is not positive or successes are not within 0 to n.

    Source: Wilson 1927, JASA 22, 209-212.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise DataError(f"{successes} successes of {n} trials: need n > 0 and 0 <= successes <= n")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return Interval(
        value=share, low=max(0.0, centre - half), high=min(1.0, centre + half), n=n, clusters=n
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _ClusterTotals:
    """Sum and count of the values of each cluster, clusters in a fixed order."""

    names: tuple[Hashable, ...]
    sums: NDArray[np.float64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, values: ArrayLike, clusters: Sequence[Hashable] | None) -> "_ClusterTotals":
        array = np.asarray(values, dtype=np.float64)
        names = list(range(array.size)) if clusters is None else list(clusters)
        if array.ndim != 1 or len(names) != array.size or not array.size:
            raise DataError(
                f"values of shape {array.shape} and {len(names)} cluster names: need one name "
                "for each of at least one value"
            )
        if not np.isfinite(array).all():
            raise DataError(f"value {int(np.flatnonzero(~np.isfinite(array))[0])} is not finite")
        order = {name: i for i, name in enumerate(sorted(set(names), key=_sort_key))}
        place = np.array([order[name] for name in names])
        return cls(
            names=tuple(order),
            sums=np.bincount(place, weights=array).astype(np.float64),
            counts=np.bincount(place),
        )


def _sort_key(name: Hashable) -> tuple[str, str]:
    return type(name).__name__, str(name)


def _interval(
    statistic: Callable[[NDArray[np.int64]], float],
    *,
    n: int,
    clusters: int,
    seed: int,
    resamples: int,
    confidence: float,
) -> Interval:
    """The statistic of all clusters, with percentiles of it over resampled clusters."""
    if clusters < 2:
        raise DataError(
            f"{n} values in {clusters} cluster say nothing about how clusters differ: an interval "
            "needs at least 2 prompts"
        )
    generator = np.random.default_rng(seed)
    drawn = [statistic(generator.integers(0, clusters, clusters)) for _ in range(resamples)]
    tail = 0.5 * (1.0 - confidence)
    low, high = np.quantile(drawn, [tail, 1.0 - tail])
    return Interval(
        value=statistic(np.arange(clusters)),
        low=float(low),
        high=float(high),
        n=n,
        clusters=clusters,
    )
