"""How fast a role's process multiplies matrices of its own model's shapes."""

import time
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Products:
    """The matrix products of passes over `tokens` tokens at a time.

    `head_tokens` of them are projected to the vocabulary (0 for a value model).
    """

    tokens: int
    head_tokens: int = 0
    backward: bool = False
    precision: str = "float32"


def product_rate(actor: Any, products: Products) -> float:
    """Operations a second of these products alone, one after the other, within an actor."""
    return rate_of_products(getattr(actor, "_own", None) or actor._module, products)


def rate_of_products(module: Any, products: Products) -> float:
    """Operations a second of these products alone, one after the other, on the module's device.

    The weights are the model's own, layer by layer, so caches see what they see in training. As
    each product takes part with all its operations, this is their mean weighted by operations.
    """
    import torch

    device = next(module.parameters()).device
    dtype = torch.bfloat16 if products.precision == "bfloat16" else torch.float32
    with torch.no_grad():
        work = [
            (parameter.detach().to(dtype), products.tokens)
            for name, parameter in module.backbone.named_parameters()
            if parameter.ndim == 2 and "embed" not in name
        ]
        if products.head_tokens:
            head = module.causal_lm.get_output_embeddings().weight
            work.append((head.detach().to(dtype), products.head_tokens))
        operations = sum(2.0 * rows * weight.numel() for weight, rows in work)
        sizes = {(rows, width) for weight, rows in work for width in weight.shape}
        inputs = {size: torch.randn(size, dtype=dtype, device=device) for size in sizes}
        _multiply(work if device.type == "cuda" else work[:7], inputs, products.backward)
        _wait(device)
        began = time.perf_counter()
        _multiply(work, inputs, products.backward)
        _wait(device)
        seconds = time.perf_counter() - began
    return operations * (3 if products.backward else 1) / seconds


def _wait(device: Any) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def _multiply(work: list[tuple[Any, int]], inputs: dict[Any, Any], backward: bool) -> None:
    for weight, rows in work:
        outputs, width = weight.shape
        inputs[rows, width] @ weight.T
        if backward:
            gradient = inputs[rows, outputs]
            gradient @ weight
            gradient.T @ inputs[rows, width]
