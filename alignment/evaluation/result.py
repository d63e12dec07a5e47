"""Everything an evaluation found, and the file it is kept in."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from alignment.errors import DataError
from alignment.evaluation.gold_correlation import GoldCorrelation, gold_correlations
from alignment.evaluation.label_statistics import LabelStatistics
from alignment.evaluation.pair_accuracy import (
    CrossValidatedAccuracy,
    PairAccuracy,
    ScoredCandidate,
    pair_accuracy,
    pairs_by_gold,
)
from alignment.evaluation.policy_comparison import PolicyComparison, compare_policies
from alignment.evaluation.resampling import Resampling
from alignment.evaluation.samples import EvaluatedSample, check_samples

FEWEST_PROMPTS = 2
"""A language with fewer held-out prompts gets no comparison: one prompt has no interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelAccuracy:
    """Against noise-free gold: on all held-out pairs, and on those without a probe.

    None where gold tells apart the responses of fewer than two prompts.
    """

    all_pairs: PairAccuracy | None
    sampled_pairs: PairAccuracy | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """What held-out prompts say about a run.

    `headline` compares the policies in the headline language, the only one that counts as the
    run's gain; `others` are further languages, `left_out` the number of prompts of languages
    with too few. `reward_model` is None without a rubric, `cross_validated` without pairs
    that people ranked; `gold_correlations` is empty without a rubric.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    resampling: Resampling
    headline: PolicyComparison
    others: Mapping[str, PolicyComparison]
    left_out: Mapping[str, int]
    reward_model: RewardModelAccuracy | None
    cross_validated: CrossValidatedAccuracy | None
    gold_correlations: tuple[GoldCorrelation, ...]
    labels: LabelStatistics | None


_RESULT = TypeAdapter(EvaluationResult)


def evaluate(
    samples: Sequence[EvaluatedSample],
    *,
    resampling: Resampling,
    headline_language: str = "en",
    heldout_candidates: Sequence[ScoredCandidate] = (),
    sft_candidates: Sequence[ScoredCandidate] = (),
    cross_validated: CrossValidatedAccuracy | None = None,
    labels: LabelStatistics | None = None,
) -> EvaluationResult:
    """Compare PPO with SFT, and judge the reward model and the rubric by what is given.

    Args:
        samples: of both policies on held-out prompts.
        resampling: for every interval.
        headline_language: the language whose figures count; only its candidates are used.
        heldout_candidates: with gold and reward-model scores, for the model's accuracy.
        sft_candidates: of the ranked round, for the correlation of gold with surface features.
        cross_validated: of pairs that people ranked, reported as it is.
        labels: statistics of the frozen round, reported as they are.

    Raises:
        DataError: samples do not pair up by prompt, or too few prompts in the headline language.
        NumericsError: a score is not finite.
    """
    check_samples(samples)
    prompts = Counter(language for _, language in {(s.prompt_id, s.language) for s in samples})
    enough = sorted(name for name, count in prompts.items() if count >= FEWEST_PROMPTS)
    if headline_language not in enough:
        raise DataError(
            f"{prompts[headline_language]} held-out prompts in language {headline_language!r}; "
            f"the comparison needs at least {FEWEST_PROMPTS} (prompts seen: {dict(prompts)})"
        )
    comparisons = {
        language: compare_policies(samples, language=language, resampling=resampling)
        for language in enough
    }
    heldout = [c for c in heldout_candidates if c.language == headline_language]
    ranked = [c for c in sft_candidates if c.language == headline_language]
    return EvaluationResult(
        resampling=resampling,
        headline=comparisons.pop(headline_language),
        others=comparisons,
        left_out={name: count for name, count in prompts.items() if name not in enough},
        reward_model=_reward_model_accuracy(heldout, resampling) if heldout else None,
        cross_validated=cross_validated,
        gold_correlations=tuple(gold_correlations(ranked)) if ranked else (),
        labels=labels,
    )


def _reward_model_accuracy(
    candidates: Sequence[ScoredCandidate], resampling: Resampling
) -> RewardModelAccuracy:
    def accuracy(*, probes: bool) -> PairAccuracy | None:
        pairs = pairs_by_gold(candidates, probes=probes)
        enough = len({pair.prompt_id for pair in pairs}) >= FEWEST_PROMPTS
        return pair_accuracy(pairs, resampling=resampling) if enough else None

    return RewardModelAccuracy(
        all_pairs=accuracy(probes=True), sampled_pairs=accuracy(probes=False)
    )


def write_evaluation(result: EvaluationResult, path: Path) -> None:
    """Write the result as JSON, e.g. to `evaluation.json`."""
    path.write_bytes(_RESULT.dump_json(result, indent=2) + b"\n")


def read_evaluation(path: Path) -> EvaluationResult:
    """The result that `write_evaluation` wrote.

    Raises:
        DataError: the file is not an evaluation; names the field.
    """
    try:
        return _RESULT.validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(str(part) for part in problem["loc"]) or "the file"
        raise DataError(
            f"{path}, {name}: {problem['msg']}; the evaluation stage writes this file, "
            "run that stage again"
        ) from None
