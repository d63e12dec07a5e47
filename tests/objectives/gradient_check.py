"""Central finite differences, to compare autograd with."""

import torch
from torch import Tensor


def assert_gradient(loss, at: Tensor, *, step: float = 1e-6, tolerance: float = 1e-7) -> None:
    """`loss(x)` -> scalar, differentiated at `at` (float64) by autograd and by differences."""
    x = at.detach().clone().requires_grad_(True)
    loss(x).backward()
    numeric = torch.zeros_like(at)
    for i in range(at.numel()):
        nudge = torch.zeros_like(at)
        nudge.view(-1)[i] = step
        with torch.no_grad():
            numeric.view(-1)[i] = (loss(at + nudge) - loss(at - nudge)) / (2 * step)
    assert torch.isfinite(x.grad).all()
    assert numeric.abs().max() > 1e-3, "the check sees no gradient at all: it could not fail"
    torch.testing.assert_close(x.grad, numeric, rtol=tolerance, atol=tolerance)
