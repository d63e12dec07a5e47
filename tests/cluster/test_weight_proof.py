"""What an engine says of the probe, held against what the policy says."""

import math

import pytest

from alignment.cluster.generator import ProbeAnswer, require_same_answer
from alignment.cluster.weights import WeightProbe, probe_tokens
from alignment.errors import ClusterError

PROBE = WeightProbe(token_ids=(5, 6, 7, 8), logprobs=(-1.0, -2.0, -3.0))


def compare(**different: object) -> None:
    same: dict[str, object] = {
        "version": 4,
        "token_ids": PROBE.token_ids,
        "logprobs": PROBE.logprobs,
        "accepted_gap_nats": 1e-3,
    }
    answer = ProbeAnswer(**same | different)  # type: ignore[arg-type]
    require_same_answer(answer, PROBE, engine="generator rank 1")


def test_the_same_numbers_are_accepted_also_where_the_context_cut_them() -> None:
    compare()
    compare(logprobs=(-1.0, -2.0, -3.0029))  # 9.7e-4 on average
    compare(token_ids=(5, 6), logprobs=(-1.0,))


@pytest.mark.parametrize(
    ("logprobs", "gap"), [((-1.0, -2.0, -3.0031), "0.00103"), ((-1.0, math.nan, -3.0), "nan")]
)
def test_other_numbers_are_refused(logprobs: tuple[float, ...], gap: str) -> None:
    with pytest.raises(ClusterError, match=rf"rank 1: .* version 4, .* policy's by {gap} nats a"):
        compare(logprobs=logprobs)


def test_an_answer_about_other_tokens_is_none() -> None:
    with pytest.raises(ClusterError, match=r"asked \(5, 6, 7, 9\) where the policy was asked"):
        compare(token_ids=(5, 6, 7, 9))


def test_no_answer_is_no_proof() -> None:
    with pytest.raises(ClusterError, match="rank 1 was asked nothing where the policy was asked"):
        require_same_answer(None, PROBE, engine="generator rank 1")


def test_policy_and_engines_draw_the_same_tokens() -> None:
    assert probe_tokens(100) == probe_tokens(100) != probe_tokens(50_000)
    assert len(probe_tokens(100)) == 16
    assert max(probe_tokens(100)) < 100
