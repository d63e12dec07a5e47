"""How far the labelers of a round agree, in the coefficients that the literature reports.

Units are pairs of responses to one prompt, ratings the signed strength from -3 to 3, or the
verdict -1, 0, 1 for the kappas. Pairs of one prompt depend on each other, so intervals resample
whole prompts.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from alignment.statistics.agreement import (
    Level,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha_interval,
)
from alignment.statistics.bootstrap import Interval
from labeling_ui.opinions import Opinion

SEED = 0
LEVELS: tuple[Level, ...] = ("nominal", "ordinal", "interval")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRatings:
    """Ratings (labelers, pairs), nan where missing, and the prompt of each pair."""

    ratings: NDArray[np.float64]
    labelers: tuple[str, ...]
    prompts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairKappa:
    """Cohen's kappa of two labelers over the `pairs` that both judged; nan if undefined."""

    first: str
    second: str
    pairs: int
    kappa: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundAgreement:
    """Alpha by level (None with fewer than 2 prompts judged twice), and the kappas of verdicts.

    `fleiss` covers the pairs judged by exactly `fleiss_raters` labelers, the number that most
    pairs judged more than once have; None where no pair was.
    """

    alpha: dict[Level, Interval | None]
    cohen: tuple[PairKappa, ...]
    fleiss: float | None
    fleiss_raters: int
    fleiss_pairs: int


def pair_ratings(opinions: Sequence[Opinion]) -> PairRatings:
    """The counted judgements of main prompts as a table of pairs."""
    main = [opinion for opinion in opinions if opinion.kind == "main" and opinion.counted]
    by_prompt: dict[str, list[Opinion]] = defaultdict(list)
    for opinion in main:
        by_prompt[opinion.prompt_id].append(opinion)
    labelers = sorted({opinion.labeler for opinion in main})
    row = {name: index for index, name in enumerate(labelers)}
    columns, prompts = [], []
    for prompt, ranked in by_prompt.items():
        for k, m in ranked[0].pairs():
            column = np.full(len(labelers), np.nan)
            for opinion in ranked:
                column[row[opinion.labeler]] = opinion.strengths[k][m]
            columns.append(column)
            prompts.append(prompt)
    table = np.array(columns).T if columns else np.empty((0, 0))
    return PairRatings(ratings=table, labelers=tuple(labelers), prompts=tuple(prompts))


def round_agreement(opinions: Sequence[Opinion]) -> RoundAgreement:
    """All coefficients of a round's counted judgements."""
    pairs = pair_ratings(opinions)
    verdicts = np.sign(pairs.ratings)
    fleiss, raters, units = _fleiss(verdicts)
    return RoundAgreement(
        alpha={level: alpha_of(pairs, level) for level in LEVELS},
        cohen=tuple(_cohen(pairs.labelers, verdicts)),
        fleiss=fleiss,
        fleiss_raters=raters,
        fleiss_pairs=units,
    )


def alpha_of(pairs: PairRatings, level: Level) -> Interval | None:
    """Krippendorff's alpha of the strengths; None if fewer than two prompts were judged twice."""
    if not pairs.prompts:
        return None
    twice = np.isfinite(pairs.ratings).sum(axis=0) >= 2
    if len({prompt for prompt, kept in zip(pairs.prompts, twice, strict=True) if kept}) < 2:
        return None
    return krippendorff_alpha_interval(pairs.ratings, pairs.prompts, level=level, seed=SEED)


def _cohen(labelers: Sequence[str], verdicts: NDArray[np.float64]) -> list[PairKappa]:
    rated = np.isfinite(verdicts)
    found = []
    for a, b in combinations(range(len(labelers)), 2):
        both = rated[a] & rated[b]
        if both.any():
            kappa = cohen_kappa(verdicts[a, both].tolist(), verdicts[b, both].tolist())
            found.append(
                PairKappa(first=labelers[a], second=labelers[b], pairs=int(both.sum()), kappa=kappa)
            )
    return found


def _fleiss(verdicts: NDArray[np.float64]) -> tuple[float | None, int, int]:
    raters = np.isfinite(verdicts).sum(axis=0) if verdicts.size else np.zeros(0, int)
    usual = Counter(int(n) for n in raters if n >= 2).most_common(1)
    if not usual:
        return None, 0, 0
    number, units = usual[0]
    chosen = verdicts[:, raters == number]
    counts = np.stack([(chosen == verdict).sum(axis=0) for verdict in (-1, 0, 1)], axis=1)
    return fleiss_kappa(counts), number, units
