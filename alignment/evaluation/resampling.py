"""How often and from which seed intervals are resampled: one setting for a whole evaluation."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from numpy.typing import ArrayLike

from alignment.statistics.bootstrap import Interval, bootstrap_difference, bootstrap_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampling:
    """95% percentile intervals from `resamples` draws of prompts."""

    seed: int
    resamples: int = 2000

    def mean(self, values: ArrayLike, prompts: Sequence[Hashable]) -> Interval:
        """Mean of `values` [n] whose prompts are `prompts` [n]."""
        return bootstrap_mean(values, prompts, seed=self.seed, resamples=self.resamples)

    def difference(
        self,
        treated: ArrayLike,
        treated_prompts: Sequence[Hashable],
        baseline: ArrayLike,
        baseline_prompts: Sequence[Hashable],
    ) -> Interval:
        """Mean of `treated` minus mean of `baseline`, paired by prompt."""
        return bootstrap_difference(
            treated,
            treated_prompts,
            baseline,
            baseline_prompts,
            seed=self.seed,
            resamples=self.resamples,
        )
