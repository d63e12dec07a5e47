"""Signs that a policy games its reward: pure functions over the numbers of its steps so far.

A rule sees the values of one quantity in the order of the steps, the newest last, and answers
with a reading, or None while there is too little to compare. Gao et al. 2023 (arXiv 2210.10760)
measure what these look for: the trained-on reward rises while a better judge's falls. Longer
responses and repetition are the usual ways there (Singhal et al. 2023, arXiv 2310.03716).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from alignment.statistics.repetition import repetition_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a rule measured, and whether that is beyond its threshold."""

    value: float
    alarm: bool


def length_drift(lengths: Sequence[float], *, baseline_steps: int, factor: float) -> Reading | None:
    """Newest mean length over the mean of the first steps; alarm beyond factor or 1 / factor.

    lengths: tokens, one mean a step, above 0.
    """
    ratio = _over_baseline(lengths, baseline_steps)
    if ratio is None:
        return None
    return Reading(value=ratio, alarm=ratio > factor or ratio < 1 / factor)


def repetition_rise(
    repetitions: Sequence[float], *, baseline_steps: int, rise: float
) -> Reading | None:
    """Newest repetition minus the mean of the first steps; alarm above `rise`.

    repetitions: shares from 0 to 1, one mean of `token_repetition` a step.
    """
    if len(repetitions) <= baseline_steps:
        return None
    difference = repetitions[-1] - math.fsum(repetitions[:baseline_steps]) / baseline_steps
    return Reading(value=difference, alarm=difference > rise)


def disagreement_rise(
    disagreements: Sequence[float], *, baseline_steps: int, factor: float
) -> Reading | None:
    """Newest disagreement of an ensemble over the mean of the first steps; alarm above factor."""
    ratio = _over_baseline(disagreements, baseline_steps)
    return None if ratio is None else Reading(value=ratio, alarm=ratio > factor)


def judge_divergence(
    rewards: Sequence[float], judgements: Sequence[float], *, evaluations: int, fall: float
) -> Reading | None:
    """Whether the reward rises while a held-out judge falls.

    A least-squares line is drawn through the last `evaluations` values of each. The reading is how
    far the judge's line falls from its first to its last point, in the judge's units. Alarm: that
    is above `fall`, and the reward's line rises.

    rewards, judgements: the training reward's and the judge's mean at the same evaluations.
    """
    if len(rewards) != len(judgements) or len(judgements) < evaluations:
        return None
    fallen = -_rise_of_line(judgements[-evaluations:])
    rises = _rise_of_line(rewards[-evaluations:]) > 0
    return Reading(value=fallen, alarm=rises and fallen > fall)


def token_repetition(tokens: Sequence[int]) -> float:
    """Share of a response's token triples that occurred before in it; tokens suit any language."""
    return repetition_rate(tokens, n=3)


def _over_baseline(values: Sequence[float], baseline_steps: int) -> float | None:
    if len(values) <= baseline_steps:
        return None
    baseline = math.fsum(values[:baseline_steps]) / baseline_steps
    return values[-1] / baseline if baseline > 0 else None


def _rise_of_line(values: Sequence[float]) -> float:
    """How far the least-squares line through equally spaced values climbs from end to end."""
    last = len(values) - 1
    middle, mean = last / 2, math.fsum(values) / len(values)
    products = math.fsum((x - middle) * (y - mean) for x, y in enumerate(values))
    return last * products / math.fsum((x - middle) ** 2 for x in range(last + 1))
