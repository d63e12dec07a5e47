"""Sums, means and whitening over the True entries of a mask, taken over all rows given."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from alignment.errors import DataError


def masked_sum(
    values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, dim: int | None = None
) -> Float[Tensor, "..."]:
    """Sum of `values` where `mask` is True: over everything, or along `dim`."""
    kept = torch.where(mask, values, 0.0)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Mean of `values` where `mask` is True.

    Raises:
        DataError: no entry of the mask is True.
    """
    return masked_sum(values, mask) / _count(mask, at_least=1)


def masked_variance(
    values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, unbiased: bool = True
) -> Float[Tensor, ""]:
    """Variance of `values` where `mask` is True; `unbiased` divides by n - 1, else by n.

    Raises:
        DataError: fewer True entries than the divisor needs (2 if unbiased, else 1).
    """
    count = _count(mask, at_least=2 if unbiased else 1)
    values = torch.where(mask, values, 0.0)
    deviations = values - masked_mean(values, mask)
    return masked_sum(deviations.square(), mask) / (count - 1 if unbiased else count)


def masked_whiten(
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    shift_mean: bool = True,
    unbiased: bool = True,
    eps: float = 1e-8,
) -> Float[Tensor, "B T"]:
    """`(values - mean) / sqrt(variance + eps)` where `mask` is True, 0 elsewhere.

    Mean and variance are of all True entries given, so pass the whole rollout batch, not one
    rank's part or a minibatch. Without `shift_mean` the mean is added back afterwards.

    Raises:
        DataError: fewer than two True entries (one if not `unbiased`).

    Source: Huang et al. 2024, arXiv 2403.17031, details 24 and 25.
    """
    values = torch.where(mask, values, 0.0)
    mean = masked_mean(values, mask)
    scale = torch.rsqrt(masked_variance(values, mask, unbiased=unbiased) + eps)
    whitened = (values - mean) * scale
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(mask, whitened, 0.0)


def _count(mask: Tensor, *, at_least: int) -> int:
    count = int(mask.sum())
    if count < at_least:
        raise DataError(
            f"the mask has {count} True entries, the statistic needs at least {at_least}: "
            "leave batches without response tokens out"
        )
    return count
