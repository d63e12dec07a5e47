import math

import pytest
import torch

from alignment.objectives.sampler_weights import sampler_weights

MASK = torch.tensor([[0, 1, 1, 1, 1]]) == 1
SAMPLER = torch.tensor([[math.nan, -1.0, -1.0, -1.0, -1.0]])


def weights(**settings):
    old = SAMPLER + torch.tensor([[0.0, 4.0, 1.4, 0.6, 0.1]]).log()
    return sampler_weights(old, SAMPLER, MASK, **settings)[0].tolist()


def test_truncation_bounds_from_above_only():
    assert weights(kind="truncate", high=2.0) == pytest.approx([0, 2.0, 1.4, 0.6, 0.1])


def test_masking_leaves_tokens_outside_the_bounds_out():
    assert weights(kind="mask", low=0.5, high=2.0) == pytest.approx([0, 0, 1.4, 0.6, 0])


def test_a_sampler_that_agrees_changes_nothing():
    for settings in ({"kind": "truncate"}, {"kind": "mask", "low": 0.5}):
        same = sampler_weights(SAMPLER, SAMPLER, MASK, high=2.0, **settings)
        assert same.tolist() == [[0, 1, 1, 1, 1]]


def test_an_extreme_gap_overflows_nothing():
    far = sampler_weights(SAMPLER + 500, SAMPLER, MASK, kind="truncate", high=2.0)
    assert far.tolist() == [[0, 2, 2, 2, 2]]


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'clip' is not known"):
        weights(kind="clip", high=2.0)
