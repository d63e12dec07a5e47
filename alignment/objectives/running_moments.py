"""Mean and deviation of everything seen so far, without keeping it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RunningMoments:
    """Count, mean and sum of squared deviations of the values added so far, float64.

    Source: Chan, Golub and LeVeque 1983, The American Statistician 37, 242-247, eq. 2.1.
    """

    count: int = 0
    mean: float = 0.0
    squared_deviations: float = 0.0

    def add(self, values: Sequence[float]) -> "RunningMoments":
        """The moments with these values too."""
        if not values:
            return self
        new, total = len(values), self.count + len(values)
        new_mean = math.fsum(values) / new
        shift = new_mean - self.mean
        deviations = math.fsum((value - new_mean) ** 2 for value in values)
        return RunningMoments(
            count=total,
            mean=self.mean + shift * new / total,
            squared_deviations=self.squared_deviations
            + deviations
            + shift * shift * self.count * new / total,
        )

    @property
    def deviation(self) -> float:
        """Standard deviation, divided by n - 1; 0 for fewer than two values."""
        return math.sqrt(self.squared_deviations / (self.count - 1)) if self.count > 1 else 0.0
