"""From rankings by several labelers to the comparisons that a reward model learns from."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alignment.errors import DataError
from alignment.records import CandidateSet, Comparison, PreferenceGroup, Ranking


def consensus(
    candidates: Sequence[CandidateSet], rankings: Sequence[Ranking]
) -> list[PreferenceGroup]:
    """One group a ranked prompt, with a comparison for every pair of its responses.

    Groups come in the order of `candidates`; prompts that nobody ranked are left out. Pairs are
    (first < second) in the candidates' own order, whatever order a labeler saw.

    Raises:
        DataError: a ranking of a prompt or of responses that are not among the candidates.
    """
    by_prompt: dict[str, list[Ranking]] = defaultdict(list)
    for ranking in rankings:
        by_prompt[ranking.prompt_id].append(ranking)
    groups = []
    for candidate_set in candidates:
        ranked = by_prompt.pop(candidate_set.prompt.id, [])
        if ranked:
            groups.append(_group(candidate_set, ranked))
    if by_prompt:
        raise DataError(
            f"rankings of prompts that are not among the candidates: {sorted(by_prompt)[:5]}; "
            "use the candidates that the round was published with"
        )
    return groups


def _group(candidate_set: CandidateSet, rankings: Sequence[Ranking]) -> PreferenceGroup:
    ids = [response.id for response in candidate_set.responses]
    tiers_lk = np.array([_tiers_in_order(ranking, ids) for ranking in rankings])
    preference_kk = pairwise_preference(tiers_lk)
    comparisons = tuple(
        Comparison(first=i, second=j, preference=float(preference_kk[i, j]))
        for i in range(len(ids))
        for j in range(i + 1, len(ids))
    )
    return PreferenceGroup(
        prompt=candidate_set.prompt,
        responses=candidate_set.responses,
        comparisons=comparisons,
    )


def _tiers_in_order(ranking: Ranking, ids: Sequence[str]) -> list[int]:
    tier_of = dict(zip(ranking.response_ids, ranking.tiers, strict=True))
    if set(tier_of) != set(ids):
        raise DataError(
            f"ranking {ranking.annotation_id!r} of prompt {ranking.prompt_id!r} ranks responses "
            f"{sorted(tier_of)}, but the candidates have {sorted(ids)}"
        )
    return [tier_of[response_id] for response_id in ids]


def pairwise_preference(tiers_lk: NDArray[np.integer]) -> NDArray[np.float64]:
    """Share of labelers that prefer response i over response j, a tie counting one half.

    Args:
        tiers_lk: (labelers L, responses K) tiers, 0 is best.

    Returns:
        (K, K) float64 in [0, 1]; entry (i, j) + entry (j, i) is 1, and the diagonal is 0.5.
    """
    difference_lkk = tiers_lk[:, None, :].astype(np.int64) - tiers_lk[:, :, None]
    preference: NDArray[np.float64] = 0.5 + 0.5 * np.sign(difference_lkk).mean(axis=0)
    return preference
