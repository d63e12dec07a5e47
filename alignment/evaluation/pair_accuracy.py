"""How often a reward model orders pairs of responses right, against "the shorter one wins".

Length is the first thing a reward model can exploit, so its accuracy means little by itself:
both are taken on the same pairs, with the paired difference.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from alignment.errors import DataError, NumericsError
from alignment.evaluation.policy_comparison import win_share
from alignment.evaluation.resampling import Resampling
from alignment.statistics.bootstrap import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredCandidate:
    """A held-out candidate with the noise-free gold score and the reward model's.

    `is_probe` marks deliberately poor responses that no policy sampled.
    """

    prompt_id: str
    language: str
    text: str
    response_tokens: int
    finished: bool
    is_probe: bool
    gold_total: float
    gold_components: Mapping[str, float] = field(default_factory=dict)
    reward_score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredPair:
    """Two responses to one prompt whose right order is known: `better` before `worse`.

    `fold` names the cross-validation fold whose model, trained without this prompt, scored it.
    """

    prompt_id: str
    better_score: float
    worse_score: float
    better_tokens: int
    worse_tokens: int
    fold: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PairAccuracy:
    """Shares of pairs ordered right, a tie counting one half, by the model and by length.

    `length_baseline` calls the shorter response the better one. `difference` is
    accuracy - length_baseline on the same pairs.
    """

    accuracy: Interval
    length_baseline: Interval
    difference: Interval


def pairs_by_gold(candidates: Sequence[ScoredCandidate], *, probes: bool) -> list[ScoredPair]:
    """Every pair of candidates of one prompt that gold tells apart, with or without probes."""
    by_prompt: dict[str, list[ScoredCandidate]] = {}
    for candidate in candidates:
        if probes or not candidate.is_probe:
            by_prompt.setdefault(candidate.prompt_id, []).append(candidate)
    return [
        _pair(first, second)
        for group in by_prompt.values()
        for first, second in combinations(group, 2)
        if first.gold_total != second.gold_total
    ]


def _pair(first: ScoredCandidate, second: ScoredCandidate) -> ScoredPair:
    better, worse = sorted((first, second), key=lambda c: c.gold_total, reverse=True)
    return ScoredPair(
        prompt_id=first.prompt_id,
        better_score=better.reward_score,
        worse_score=worse.reward_score,
        better_tokens=better.response_tokens,
        worse_tokens=worse.response_tokens,
    )


def pair_accuracy(pairs: Sequence[ScoredPair], *, resampling: Resampling) -> PairAccuracy:
    """Accuracy and length baseline over all pairs, intervals by prompt.

    Raises:
        DataError: no pair, or pairs of a single prompt only.
        NumericsError: a score is not finite.
    """
    if not pairs:
        raise DataError("no pair of responses with a known order; accuracy needs at least two")
    for pair in pairs:
        if not (math.isfinite(pair.better_score) and math.isfinite(pair.worse_score)):
            raise NumericsError(
                f"reward-model scores {pair.better_score} and {pair.worse_score} of prompt "
                f"{pair.prompt_id!r} must be finite: the reward model is broken, train it again"
            )
    prompts = [pair.prompt_id for pair in pairs]
    by_model = [win_share(pair.better_score, pair.worse_score) for pair in pairs]
    by_length = [win_share(pair.worse_tokens, pair.better_tokens) for pair in pairs]
    return PairAccuracy(
        accuracy=resampling.mean(by_model, prompts),
        length_baseline=resampling.mean(by_length, prompts),
        difference=resampling.difference(by_model, prompts, by_length, prompts),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossValidatedAccuracy:
    """Accuracy on pairs each scored by a model that never saw their prompt.

    `pooled` is over the pairs of all folds; `by_fold` each fold's plain share, which shows how
    much the models differ.
    """

    pooled: PairAccuracy
    by_fold: Mapping[int, float]


def cross_validated_accuracy(
    pairs: Sequence[ScoredPair], *, resampling: Resampling
) -> CrossValidatedAccuracy:
    """Accuracy over k folds, e.g. of pairs that people ranked.

    Raises:
        DataError: a single fold, or a prompt that lies in more than one.
        NumericsError: a score is not finite.
    """
    fold_of: dict[str, int] = {}
    for pair in pairs:
        if fold_of.setdefault(pair.prompt_id, pair.fold) != pair.fold:
            raise DataError(
                f"prompt {pair.prompt_id!r} lies in folds {fold_of[pair.prompt_id]} and "
                f"{pair.fold}; split by prompt, or training sees what it is tested on"
            )
    folds = sorted(set(fold_of.values()))
    if len(folds) < 2:
        raise DataError(f"{len(folds)} fold; cross-validation needs at least 2")
    pooled = pair_accuracy(pairs, resampling=resampling)
    by_fold = {}
    for fold in folds:
        right = [win_share(p.better_score, p.worse_score) for p in pairs if p.fold == fold]
        by_fold[fold] = sum(right) / len(right)
    return CrossValidatedAccuracy(pooled=pooled, by_fold=by_fold)
