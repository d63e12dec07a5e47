"""How far raters agree beyond chance: Krippendorff's alpha, Cohen's and Fleiss' kappa.

Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"; Cohen 1960, Educational and
Psychological Measurement 20, 37-46; Fleiss 1971, Psychological Bulletin 76, 378-382.
"""

from collections.abc import Hashable, Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alignment.errors import DataError
from alignment.statistics.bootstrap import Interval

Level: TypeAlias = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(ratings: ArrayLike, *, level: Level) -> float:
    """Alpha of `ratings` (raters, units), nan where a rater did not rate a unit.

    alpha = 1 - observed / expected disagreement; nan where all pairable ratings are equal.

    Raises:
        DataError: no unit has two ratings.
    """
    units, values = _units(ratings)
    return _alpha(coincidences(units, len(values)), values, level)


def krippendorff_alpha_interval(
    ratings: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    level: Level,
    seed: int,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Interval:
    """Alpha with a percentile interval from resampling whole clusters of units.

    Args:
        ratings: (raters, units), nan where missing.
        clusters: [units], what units belong together, such as the pairs of one prompt.
        level: how far apart two values are.
        seed: of the resampling.
        resamples: how many times clusters are drawn.
        confidence: share of resamples within the interval.

    Raises:
        DataError: no unit has two ratings, or fewer than two clusters do.
    """
    units, values = _units(ratings)
    totals: dict[Hashable, NDArray[np.float64]] = {}
    counted = 0
    for unit, cluster in zip(units, clusters, strict=True):
        if len(unit) >= 2:
            counted += 1
            table = coincidences([unit], len(values))
            totals[cluster] = totals[cluster] + table if cluster in totals else table
    if len(totals) < 2:
        raise DataError(
            f"{counted} units with two ratings lie in {len(totals)} cluster: an interval needs 2"
        )
    tables = np.stack(list(totals.values()))
    generator = np.random.default_rng(seed)
    drawn = [
        _alpha(tables[generator.integers(0, len(tables), len(tables))].sum(axis=0), values, level)
        for _ in range(resamples)
    ]
    tail = 0.5 * (1.0 - confidence)
    low, high = (
        np.nanquantile(drawn, [tail, 1.0 - tail]) if np.isfinite(drawn).any() else (np.nan,) * 2
    )
    return Interval(
        value=_alpha(tables.sum(axis=0), values, level),
        low=float(low),
        high=float(high),
        n=counted,
        clusters=len(tables),
    )


def coincidences(units: Sequence[NDArray[np.int64]], values: int) -> NDArray[np.float64]:
    """Table (values, values) of ordered pairs of ratings within units, each over (ratings - 1).

    `units` holds the value indices that each unit was given; units with fewer than two say
    nothing.
    """
    table = np.zeros((values, values))
    for unit in units:
        if len(unit) >= 2:
            counts = np.bincount(unit, minlength=values).astype(np.float64)
            table += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    return table


def _units(ratings: ArrayLike) -> tuple[list[NDArray[np.int64]], NDArray[np.float64]]:
    table = np.asarray(ratings, dtype=np.float64)
    if table.ndim != 2:
        raise DataError(f"ratings of shape {table.shape}: need (raters, units)")
    rated = np.isfinite(table)
    values = np.unique(table[rated])
    units = [
        np.searchsorted(values, column[column_rated])
        for column, column_rated in zip(table.T, rated.T, strict=True)
    ]
    if not any(len(unit) >= 2 for unit in units):
        raise DataError("no unit has two ratings: agreement needs at least one")
    return units, values


def _alpha(table: NDArray[np.float64], values: NDArray[np.float64], level: Level) -> float:
    marginal = table.sum(axis=0)
    distance = _squared_distances(values, marginal, level)
    expected = marginal @ distance @ marginal
    if expected == 0:
        return float("nan")
    return float(1.0 - (marginal.sum() - 1) * (table * distance).sum() / expected)


def _squared_distances(
    values: NDArray[np.float64], marginal: NDArray[np.float64], level: Level
) -> NDArray[np.float64]:
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    if level == "interval":
        return np.asarray((values[:, None] - values[None, :]) ** 2)
    # Ordinal: the ratings from one value up to the other, half of the two themselves.
    total = np.cumsum(marginal)
    middle = total - 0.5 * marginal
    return np.asarray((middle[:, None] - middle[None, :]) ** 2)


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Kappa of two raters who both rated every unit; nan where both always said the same thing.

    Raises:
        DataError: lengths differ, or there are no units.
    """
    if len(first) != len(second) or not first:
        raise DataError(f"{len(first)} and {len(second)} ratings: need as many, at least one")
    names = {name: i for i, name in enumerate(dict.fromkeys([*first, *second]))}
    table = np.zeros((len(names), len(names)))
    for a, b in zip(first, second, strict=True):
        table[names[a], names[b]] += 1
    table /= table.sum()
    expected = float(table.sum(axis=1) @ table.sum(axis=0))
    return float("nan") if expected == 1 else (float(np.trace(table)) - expected) / (1 - expected)


def fleiss_kappa(counts: ArrayLike) -> float:
    """Kappa of `counts` (units, categories): how many raters put the unit there.

    Raises:
        DataError: units were not all rated by the same number of raters, at least two.
    """
    table = np.asarray(counts, dtype=np.float64)
    raters = table.sum(axis=1) if table.ndim == 2 and table.size else np.zeros(1)
    if raters[0] < 2 or (raters != raters[0]).any():
        raise DataError(
            "Fleiss' kappa needs the same number of raters, at least 2, for every unit; use "
            "Krippendorff's alpha"
        )
    n = raters[0]
    observed = float(((table**2).sum(axis=1) - n).mean() / (n * (n - 1)))
    shares = table.sum(axis=0) / table.sum()
    expected = float(shares @ shares)
    return float("nan") if expected == 1 else (observed - expected) / (1 - expected)
