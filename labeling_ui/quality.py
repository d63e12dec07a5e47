"""How good the labels of a round are: agreement, checks of labelers, biases, disputes.

Verdicts are compared by pairs of responses: two on the same pair agree fully if they are the
same, half if one is a tie. Intervals of shares of pairs resample whole prompts.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

import numpy as np

from alignment.statistics.bootstrap import Interval, bootstrap_mean, wilson_interval
from labeling_ui.opinions import Opinion
from labeling_ui.round_agreement import alpha_of, pair_ratings

SEED = 0
MIN_PROMPTS = 5
"""With fewer, resampled prompts give an interval that looks surer than it is: none is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelerQuality:
    """One labeler in a round. Intervals are None where there is too little to tell.

    `agreement` is with the other labelers of the same prompts, `consistency` with themselves on
    repeats, both shares of pairs. `first_on_top`: share of cards whose first response was put
    in the best tier, against `first_expected` if places did not matter. `longer`: share of
    decided pairs in which the longer response won.
    """

    labeler: str
    rankings: int
    median_seconds: float
    tie_share: float
    agreement: Interval | None
    gold: Interval | None
    consistency: Interval | None
    first_on_top: Interval | None
    first_expected: float
    longer: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispute:
    """A prompt that labelers see differently. `disagreement`: 0 none, 1 all pairs opposed."""

    prompt_id: str
    labelers: int
    disagreement: float
    rankings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundQuality:
    """A round: alpha on pair strengths from -3 to 3, agreement of pairs, labelers, disputes."""

    alpha: Interval | None
    agreement: Interval | None
    labelers: tuple[LabelerQuality, ...]
    disputes: tuple[Dispute, ...]


def round_quality(opinions: Sequence[Opinion]) -> RoundQuality:
    """Everything that can be said about the counted judgements given."""
    main = [opinion for opinion in opinions if opinion.kind == "main" and opinion.counted]
    by_prompt: dict[str, list[Opinion]] = defaultdict(list)
    for opinion in main:
        by_prompt[opinion.prompt_id].append(opinion)
    meetings = [
        (prompt, one, other, _pair_agreement(one, other))
        for prompt, ranked in by_prompt.items()
        for one, other in combinations(ranked, 2)
    ]
    names = sorted({opinion.labeler for opinion in opinions})
    return RoundQuality(
        alpha=alpha_of(pair_ratings(main), "ordinal"),
        agreement=_share([(prompt, agreed) for prompt, _, _, agreed in meetings]),
        labelers=tuple(
            _labeler(
                name,
                [o for o in opinions if o.labeler == name],
                [(p, a) for p, one, other, a in meetings if name in (one.labeler, other.labeler)],
            )
            for name in names
        ),
        disputes=_disputes(by_prompt),
    )


def _pair_agreement(one: Opinion, other: Opinion) -> list[float]:
    # 1 for the same verdict, 0.5 where one is a tie, 0 for opposed ones.
    return [
        1 - abs(np.sign(one.strengths[k][m]) - np.sign(other.strengths[k][m])) / 2
        for k, m in one.pairs()
    ]


def _share(meetings: Sequence[tuple[str, Sequence[float]]]) -> Interval | None:
    values = [value for _, agreed in meetings for value in agreed]
    prompts = [prompt for prompt, agreed in meetings for _ in agreed]
    if len(set(prompts)) < MIN_PROMPTS:
        return None
    return bootstrap_mean(values, prompts, seed=SEED)


def _labeler(
    name: str, mine: Sequence[Opinion], meetings: Sequence[tuple[str, Sequence[float]]]
) -> LabelerQuality:
    main = [opinion for opinion in mine if opinion.kind == "main"]
    verdicts = [o.strengths[k][m] for o in main for k, m in o.pairs()]
    on_top = [_first_on_top(opinion) for opinion in main]
    return LabelerQuality(
        labeler=name,
        rankings=len(main),
        median_seconds=median([o.active_seconds for o in mine]) if mine else 0.0,
        tie_share=float(np.mean([v == 0 for v in verdicts])) if verdicts else 0.0,
        agreement=_share(meetings),
        gold=_gold(mine),
        consistency=_consistency(mine),
        first_on_top=wilson_interval(sum(on_top), len(on_top)) if on_top else None,
        first_expected=float(np.mean([_expected_on_top(o) for o in main])) if main else 0.0,
        longer=_longer(main),
    )


def _first_on_top(opinion: Opinion) -> bool:
    return opinion.judgement.tiers[0] == 0


def _expected_on_top(opinion: Opinion) -> float:
    tiers = opinion.judgement.tiers
    return tiers.count(0) / len(tiers)


def _gold(mine: Sequence[Opinion]) -> Interval | None:
    passed = [passes_gold(opinion) for opinion in mine if opinion.gold_pairs]
    return wilson_interval(sum(passed), len(passed)) if passed else None


def passes_gold(opinion: Opinion) -> bool:
    """True if every pair of a gold or attention item stands as it must."""
    tier = dict(zip(opinion.response_ids, opinion.tiers, strict=True))
    return all(tier[better] < tier[worse] for better, worse in opinion.gold_pairs)


def _consistency(mine: Sequence[Opinion]) -> Interval | None:
    first = {opinion.task_id: opinion for opinion in mine if opinion.kind == "main"}
    again = [o for o in mine if o.repeat_of in first]
    return _share([(o.task_id, _pair_agreement(o, first[str(o.repeat_of)])) for o in again])


def _longer(main: Sequence[Opinion]) -> Interval | None:
    won = [
        (o.prompt_id, [float((o.strengths[k][m] > 0) == (o.lengths[k] > o.lengths[m]))])
        for o in main
        for k, m in o.pairs()
        if o.strengths[k][m] != 0 and o.lengths[k] != o.lengths[m]
    ]
    return _share(won)


def _disputes(by_prompt: dict[str, list[Opinion]]) -> tuple[Dispute, ...]:
    found = []
    for prompt, ranked in by_prompt.items():
        agreed = [v for a, b in combinations(ranked, 2) for v in _pair_agreement(a, b)]
        if agreed and min(agreed) == 0:
            found.append(
                Dispute(
                    prompt_id=prompt,
                    labelers=len(ranked),
                    disagreement=1 - float(np.mean(agreed)),
                    rankings=tuple(f"{o.labeler}: {ranking_words(o)}" for o in ranked),
                )
            )
    return tuple(sorted(found, key=lambda d: (-d.disagreement, d.prompt_id)))


def ranking_words(opinion: Opinion) -> str:
    """The ranking in response numbers from 1, in published order, e.g. `2 > 1 = 3`."""
    tiers = [
        " = ".join(str(k + 1) for k, tier in enumerate(opinion.tiers) if tier == level)
        for level in sorted(set(opinion.tiers))
    ]
    return " > ".join(tiers)
