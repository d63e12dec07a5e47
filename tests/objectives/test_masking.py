import math

import pytest
import torch
from gradient_check import assert_gradient
from plain_reference import whiten

from alignment.errors import DataError
from alignment.objectives.masking import (
    masked_mean,
    masked_sum,
    masked_variance,
    masked_whiten,
)

MASK = torch.tensor([[False, True, True, False, True], [True, False, False, False, True]])


def random_grid(seed=0):
    return torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_sums_see_only_what_the_mask_lets_through():
    values = torch.tensor([[9.0, 1.0, 2.0, 9.0, 4.0], [8.0, 9.0, 9.0, 9.0, 16.0]])
    assert masked_sum(values, MASK) == 31.0
    assert masked_sum(values, MASK, dim=1).tolist() == [7.0, 24.0]
    assert masked_mean(values, MASK) == pytest.approx(6.2)


@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("unbiased", [True, False])
def test_whitening_equals_the_plain_reference(shift_mean, unbiased):
    values = random_grid()
    whitened = masked_whiten(values, MASK, shift_mean=shift_mean, unbiased=unbiased)
    expected = whiten(values[MASK].tolist(), shift_mean=shift_mean, unbiased=unbiased)
    torch.testing.assert_close(
        whitened[MASK], torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )
    assert (whitened[~MASK] == 0).all()


def test_whitened_values_have_mean_0_and_variance_1():
    whitened = masked_whiten(7.0 + 3.0 * random_grid(), MASK)
    assert float(masked_mean(whitened, MASK)) == pytest.approx(0.0, abs=1e-12)
    assert float(masked_variance(whitened, MASK)) == pytest.approx(1.0, abs=1e-6)


def test_constant_values_whiten_to_zero_not_nan():
    assert (masked_whiten(torch.full((2, 5), 3.0), MASK) == 0).all()


def test_eps_bounds_the_scale():
    values = torch.tensor([[1e-9, -1e-9]], dtype=torch.float64)
    whitened = masked_whiten(values, torch.ones(1, 2, dtype=torch.bool), eps=1e-4)
    assert float(whitened[0, 0]) == pytest.approx(1e-9 / math.sqrt(1e-4), rel=1e-6)


def test_nan_outside_the_mask_changes_neither_values_nor_gradients():
    clean = random_grid().requires_grad_(True)
    dirty = random_grid().masked_fill(~MASK, math.nan).requires_grad_(True)
    weights = random_grid(1)
    for values in (clean, dirty):
        whitened = masked_whiten(values, MASK)
        ((whitened * weights).sum() + masked_variance(values, MASK)).backward()
    torch.testing.assert_close(clean.grad, dirty.grad, rtol=0, atol=0)
    assert (dirty.grad[~MASK] == 0).all()


def test_gradient_of_whitening_and_variance():
    weights = random_grid(1)
    assert_gradient(lambda x: (masked_whiten(x, MASK) * weights).sum(), random_grid())
    assert_gradient(lambda x: masked_variance(x, MASK), random_grid())


@pytest.mark.parametrize("entries", [0, 1])
def test_too_few_entries_are_refused_with_their_number(entries):
    mask = torch.zeros(2, 3, dtype=torch.bool)
    mask.view(-1)[:entries] = True
    with pytest.raises(DataError, match=f"the mask has {entries} True entries"):
        masked_whiten(torch.ones(2, 3), mask)
