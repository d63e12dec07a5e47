import numpy as np
import pytest

from alignment.errors import DataError
from alignment.records import CandidateSet, Message, Prompt, Ranking, Response
from alignment.statistics.consensus import consensus, pairwise_preference


def candidate_set(prompt_id):
    return CandidateSet(
        prompt=Prompt(id=prompt_id, messages=(Message(role="user", content="Why?"),)),
        responses=tuple(Response(id=f"{prompt_id}-{k}", text=str(k)) for k in "abc"),
    )


def ranking(prompt_id, labeler, tiers, order="abc"):
    return Ranking(
        annotation_id=f"{prompt_id}-{labeler}",
        prompt_id=prompt_id,
        labeler=labeler,
        response_ids=tuple(f"{prompt_id}-{k}" for k in order),
        tiers=tuple(tiers),
    )


def test_shares_by_hand():
    """Ada a>b>c, Bob a=b>c, Cem c>a>b. So a over b: 1 + 1/2 + 1 of 3, a and b over c: 2 of 3."""
    groups = consensus(
        [candidate_set("p")],
        [
            ranking("p", "Ada", [0, 1, 2]),
            ranking("p", "Bob", [0, 0, 1]),
            ranking("p", "Cem", [0, 1, 2], order="cab"),
        ],
    )
    (group,) = groups
    assert [(c.first, c.second) for c in group.comparisons] == [(0, 1), (0, 2), (1, 2)]
    assert [c.preference for c in group.comparisons] == pytest.approx([2.5 / 3, 2 / 3, 2 / 3])
    assert {c.weight for c in group.comparisons} == {1.0}
    assert group.responses == candidate_set("p").responses


def test_groups_follow_the_candidates_and_unranked_prompts_are_left_out():
    candidates = [candidate_set(p) for p in ("p", "q", "r")]
    rankings = [ranking("r", "Ada", [0, 1, 2]), ranking("p", "Ada", [0, 1, 2])]
    assert [g.prompt.id for g in consensus(candidates, rankings)] == ["p", "r"]


def test_preference_against_a_slow_reference():
    tiers = np.random.default_rng(0).integers(0, 3, size=(5, 4))
    expected = np.empty((4, 4))
    for i in range(4):
        for j in range(4):
            votes = [1.0 if t[i] < t[j] else 0.5 if t[i] == t[j] else 0.0 for t in tiers]
            expected[i, j] = sum(votes) / len(votes)
    np.testing.assert_allclose(pairwise_preference(tiers), expected, rtol=0, atol=1e-15)


def test_unsigned_tiers_do_not_wrap_around():
    assert pairwise_preference(np.array([[0, 1]], dtype=np.uint8))[0, 1] == 1.0


def test_rankings_of_other_candidates_are_refused():
    with pytest.raises(DataError, match="not among the candidates: \\['q'\\]"):
        consensus([candidate_set("p")], [ranking("q", "Ada", [0, 1, 2])])
    with pytest.raises(DataError, match="ranking 'p-Ada' of prompt 'p'"):
        consensus([candidate_set("p")], [ranking("p", "Ada", [0, 1], order="ab")])
