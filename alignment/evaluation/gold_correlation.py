"""Is the hidden rubric more than one surface feature? Correlation of gold with each of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from alignment.errors import DataError
from alignment.evaluation.pair_accuracy import ScoredCandidate
from alignment.evaluation.texts import words
from alignment.statistics.correlation import pearson_correlation
from alignment.statistics.repetition import repetition_rate

LENGTH = "response_tokens"

_FEATURES: dict[str, Callable[[ScoredCandidate], float]] = {
    LENGTH: lambda candidate: candidate.response_tokens,
    "response_words": lambda candidate: len(words(candidate.text)),
    "finished": lambda candidate: candidate.finished,
    "repetition": lambda candidate: repetition_rate(words(candidate.text)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldCorrelation:
    """Pearson correlation of the gold total with a feature over `n` candidates.

    `pearson` is None where the feature (or gold) is the same for all candidates.
    """

    feature: str
    pearson: float | None
    n: int


def gold_correlations(candidates: Sequence[ScoredCandidate]) -> list[GoldCorrelation]:
    """Surface features first, then the rubric's own components; probes do not count.

    Raises:
        DataError: fewer than two candidates that a policy sampled.
    """
    sampled = [candidate for candidate in candidates if not candidate.is_probe]
    if len(sampled) < 2:
        raise DataError(f"{len(sampled)} sampled candidates; a correlation needs at least 2")
    gold = [candidate.gold_total for candidate in sampled]
    series = {name: [feature(c) for c in sampled] for name, feature in _FEATURES.items()}
    for name in sampled[0].gold_components:
        series[f"gold/{name}"] = [c.gold_components[name] for c in sampled]
    return [
        GoldCorrelation(feature=name, pearson=_correlation(gold, values), n=len(sampled))
        for name, values in series.items()
    ]


def _correlation(gold: Sequence[float], values: Sequence[float]) -> float | None:
    correlation = pearson_correlation(gold, values)
    return None if np.isnan(correlation) else correlation
