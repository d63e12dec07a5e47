"""vLLM's own fused norm, used on a CPU too.

vLLM 0.32 takes its compiled RMSNorm on GPUs only; on a CPU it makes the norm of six passes over
memory, unless its compiler joins them, which takes longer than a short run has. The kernel is there
for CPUs as well, and vLLM's registry takes it as one more provider.
"""

import torch
from torch import Tensor
from vllm import ir
from vllm.platforms import current_platform

PROVIDER = "alignflow_cpu"

VECTOR = 16
"""Elements that the kernel takes at a time; it refuses rows of other widths (8 in bfloat16)."""


def register() -> dict[str, list[str]]:
    """Make the provider known in this process; the norms to use it for, empty where there is none.

    Again is harmless.
    """
    current_platform.import_kernels()
    kernels = torch.ops._C
    names = ("rms_norm", "fused_add_rms_norm")
    if not all(hasattr(kernels, name) for name in names):
        return {}
    if PROVIDER not in ir.ops.rms_norm.impls:
        ir.ops.rms_norm.register_impl(PROVIDER, supports_args=_takes)(rms_norm)
        ir.ops.fused_add_rms_norm.register_impl(PROVIDER, supports_args=_takes_sum, inplace=True)(
            fused_add_rms_norm
        )
    return {name: [PROVIDER] for name in names}


def rms_norm(
    x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> Tensor:
    """Rows of x / sqrt(mean(x^2) + epsilon) * weight, of the type of x."""
    out = torch.empty_like(x)
    torch.ops._C.rms_norm(out, x, weight, epsilon)
    return out


def fused_add_rms_norm(
    x: Tensor,
    x_residual: Tensor,
    weight: Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The norm of x + x_residual, and that sum, in the memory of both."""
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual


def _takes(
    x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    """The kernel takes whole weighted rows that lie one after the other, of whole vectors."""
    is_plain = x.is_contiguous() and variance_size is None and x.shape[-1] % VECTOR == 0
    return is_plain and weight is not None and weight.is_contiguous() and weight.dtype == x.dtype


def _takes_sum(
    x: Tensor,
    x_residual: Tensor,
    weight: Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> bool:
    is_plain = x_residual.is_contiguous() and x_residual.dtype == x.dtype
    return is_plain and _takes(x, weight, epsilon, variance_size)
