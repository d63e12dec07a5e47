"""Refuse to go on with numbers that are not numbers."""

import math

from torch import Tensor

from alignment.errors import NumericsError


def require_finite(what: str, value: float, *, step: int) -> None:
    """Raise NumericsError naming the quantity and the step unless `value` is finite."""
    if not math.isfinite(value):
        raise NumericsError(
            f"{what} is {value} at step {step}; the weights were not updated with it. Lower the "
            "learning rate or look at the step's data"
        )


def require_one_each(what: str, values: Tensor, sequences: int, *, step: int) -> None:
    """Raise NumericsError unless there is one value a sequence: `values` is [sequences, ...]."""
    if values.ndim == 0 or len(values) != sequences:
        raise NumericsError(
            f"{what}: got {tuple(values.shape)} values for {sequences} sequences at step {step}; "
            "no update was made. Whoever scores must answer once for each sequence, in order"
        )


def require_finite_rows(what: str, values: Tensor, *, step: int) -> None:
    """Raise NumericsError naming the first bad row unless every value is finite."""
    finite = values.isfinite().flatten(1).all(1) if values.ndim > 1 else values.isfinite()
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise NumericsError(
            f"{what} of sequence {row} at step {step} is not finite ({values[row].tolist()}); "
            "no update was made. Check the model that produced it"
        )
