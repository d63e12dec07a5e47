import math

import pytest
import torch
from gradient_check import assert_gradient
from plain_reference import aggregate

from alignment.errors import DataError
from alignment.objectives.aggregation import (
    aggregation_denominator,
    aggregation_numerator,
    token_weights,
)

AGGREGATIONS = ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"]
# Row 1 has a gap, row 2 no response token at all.
MASK = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]) == 1


def losses(seed=0):
    return torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_equals_the_plain_reference(aggregation):
    rows = [row[mask].tolist() for row, mask in zip(losses(), MASK, strict=True)]
    value = aggregation_numerator(losses(), MASK, aggregation) / aggregation_denominator(
        MASK, aggregation
    )
    assert float(value) == pytest.approx(aggregate(rows, aggregation), rel=1e-12)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("cuts", [[4], [1, 1, 1, 1], [1, 3], [3, 1]])
def test_any_cut_into_microbatches_gives_the_same_loss(aggregation, cuts):
    whole = aggregation_numerator(losses(), MASK, aggregation)
    parts = [
        aggregation_numerator(part, mask, aggregation)
        for part, mask in zip(losses().split(cuts), MASK.split(cuts), strict=True)
    ]
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-12)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_token_weighs_what_its_weight_says(aggregation):
    weights = token_weights(MASK, aggregation, dtype=torch.float64)
    expected = aggregation_numerator(losses(), MASK, aggregation)
    assert float((weights * losses()).sum()) == pytest.approx(float(expected), rel=1e-12)
    assert (weights[~MASK] == 0).all()
    assert_gradient(lambda x: aggregation_numerator(x, MASK, aggregation), losses())


@pytest.mark.parametrize(("aggregation", "expected"), zip(AGGREGATIONS, [7, 3, 3], strict=True))
def test_denominator_counts_tokens_or_sequences_that_have_one(aggregation, expected):
    assert aggregation_denominator(MASK, aggregation) == expected


def test_sequence_means_weigh_short_and_long_the_same():
    weights = token_weights(MASK, "seq-mean-token-mean")
    assert weights.sum(1).tolist() == [1.0, 1.0, 0.0, 1.0]


def test_nan_outside_the_mask_does_not_matter():
    dirty = losses().masked_fill(~MASK, math.nan)
    assert torch.isfinite(aggregation_numerator(dirty, MASK, "seq-mean-token-mean"))


def test_a_minibatch_without_response_tokens_is_refused():
    with pytest.raises(DataError, match="no response token"):
        aggregation_denominator(torch.zeros(2, 3, dtype=torch.bool), "token-mean")


@pytest.mark.parametrize("function", [token_weights, aggregation_denominator])
def test_an_unknown_aggregation_names_the_known_ones(function):
    with pytest.raises(ValueError, match="accepted: token-mean, seq-mean-token-mean"):
        function(MASK, "mean")
