"""Layers that keep less say what transformers' own say, values and gradients."""

import copy
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from alignment.models import lean_layers
from alignment.models.lean_layers import keep_less, rms_norm, silu_gate

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
FAMILIES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "mistral": (MistralForCausalLM, MistralConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
    "olmo2": (Olmo2ForCausalLM, Olmo2Config),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config),
}
REPLACED = {"llama": 7, "mistral": 7, "qwen2": 7, "qwen3": 11, "olmo2": 11, "gemma2": 0}
"""Norms and MLPs of two layers, and the last norm; Gemma multiplies with 1 + weight."""

TOKENS = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(1))


def family(name: str) -> nn.Module:
    model_class, config = FAMILIES[name]
    torch.manual_seed(0)
    model: nn.Module = model_class(config(**SIZES, pad_token_id=0)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def loss_and_gradients(model: Any) -> dict[str, Tensor]:
    model.zero_grad()
    loss = model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss
    loss.backward()
    return {"loss": loss.detach()} | {
        name: parameter.grad.clone() for name, parameter in model.named_parameters()
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_loss_and_gradients_stay(name: str) -> None:
    model = family(name).double()
    before, names = loss_and_gradients(model), list(model.state_dict())
    keep_less(model)
    replaced = [module for module in model.modules() if "forward" in vars(module)]
    assert len(replaced) == REPLACED[name]
    assert list(model.state_dict()) == names
    for key, tensor in loss_and_gradients(model).items():
        # transformers' norms compute in float32 whatever the weights are
        torch.testing.assert_close(tensor, before[key], rtol=1e-5, atol=1e-6, msg=key)


def test_a_copy_computes_with_its_own_weights() -> None:
    model = family("llama")
    keep_less(model)
    twin: Any = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert twin(input_ids=TOKENS).logits.abs().max() > 0.01


def test_gradients_of_the_norm_are_those_of_finite_differences() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, generator=draw, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, generator=draw, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-3), (x, weight))


def test_gradients_of_the_gate_are_those_of_finite_differences() -> None:
    draw = torch.Generator().manual_seed(0)
    gate, up = (
        torch.randn(3, 5, generator=draw, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    assert torch.autograd.gradcheck(silu_gate, (gate, up))


def test_a_norm_by_hand() -> None:
    """Mean square of (3, 4) is 12.5; with epsilon 3.5 the root is 4."""
    normed = rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([2.0, -1.0]), 3.5)
    assert normed.tolist() == [[1.5, -1.0]]


def test_a_gate_is_the_plain_one_to_the_bit() -> None:
    gate, up = torch.randn(2, 7, 33, generator=torch.Generator().manual_seed(0))
    assert torch.equal(silu_gate(gate, up), F.silu(gate) * up)


def test_under_autocast_the_norm_of_the_residual_is_rounded_once() -> None:
    """What matrices would round anyway. The norm of a product's output stays in float32."""
    norm = LlamaRMSNorm(64, eps=1e-5)
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = rms_norm(x, norm.weight, 1e-5)
        of_product = rms_norm(x.bfloat16(), norm.weight, 1e-5)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, norm(x).bfloat16())
    assert of_product.dtype == torch.float32
    torch.testing.assert_close(of_product, norm(x.bfloat16().float()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_have_their_inputs_types(dtype: torch.dtype) -> None:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    weight = torch.ones(64, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rms_norm(x, weight, 1e-5).float().sum().backward()
    assert (x.grad.dtype, weight.grad.dtype) == (dtype, torch.float32)


def test_an_mlp_forgets_its_activation_until_the_backward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []

    def watched(gate: Tensor, up: Tensor) -> Tensor:
        gated = silu_gate(gate, up)
        made.append(weakref.ref(gated))
        return gated

    monkeypatch.setattr(lean_layers, "silu_gate", watched)
    model: Any = family("llama")
    keep_less(model)  # asks a layer about random rows
    made.clear()
    loss = model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss
    assert [gated() for gated in made] == [None, None]
    loss.backward()


class ScaledMLP(nn.Module):
    """Parts like a gated MLP's, but half of its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(4, 6), nn.Linear(4, 6)
        self.down_proj, self.act_fn = nn.Linear(6, 4), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return down / 2


def test_a_layer_that_answers_otherwise_is_left_alone() -> None:
    model = nn.Sequential(ScaledMLP())
    keep_less(model)
    assert "forward" not in vars(model[0])
