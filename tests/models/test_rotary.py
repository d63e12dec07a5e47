"""Our rotation of queries and keys turns as transformers' own, values and gradients."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GlmConfig, GlmForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from alignment.models.rotary import rotate_in_fewer_passes, rotate_queries_and_keys
from tests.models.test_lean_layers import FAMILIES, SIZES, family, loss_and_gradients

TURNED = {"llama": 2, "mistral": 2, "qwen2": 2, "qwen3": 2, "olmo2": 0, "gemma2": 2}
"""Attention layers; OLMo 2 rounds what it has turned."""


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_a_quarter_turn_by_hand() -> None:
    """At 90 degrees the pair (3, 4) becomes (-4, 3)."""
    pair = torch.tensor([3.0, 4.0]).reshape(1, 1, 1, 2)
    angle = torch.tensor([math.pi / 2, math.pi / 2]).reshape(1, 1, 2)
    turned, _ = rotate_queries_and_keys(pair, pair, angle.cos(), angle.sin())
    torch.testing.assert_close(turned.flatten(), torch.tensor([-4.0, 3.0]))


def test_gradients_are_those_of_finite_differences() -> None:
    """Also where the halves' angles differ, which no family's do."""
    query, key = (drawn(1, 2, 3, 4, seed=seed).requires_grad_() for seed in (0, 1))
    cos, sin = drawn(1, 3, 4, seed=2), drawn(1, 3, 4, seed=3)
    assert torch.autograd.gradcheck(
        lambda q, k: rotate_queries_and_keys(q, k, cos, sin), (query, key)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_types_and_gradients_are_transformers_own(dtype: torch.dtype) -> None:
    """Of 16-bit queries and float32 angles the answer is float32, its gradient 16-bit again."""
    cos, sin = (drawn(2, 9, 8, seed=seed).float() for seed in (2, 3))
    answers = []
    for rotate in (rotate_queries_and_keys, apply_rotary_pos_emb):
        query = drawn(2, 9, 4, 8, seed=0).to(dtype).requires_grad_()
        key = drawn(2, 9, 2, 8, seed=1).to(dtype).requires_grad_()
        turned = rotate(query.transpose(1, 2), key.transpose(1, 2), cos, sin)
        (turned[0].square().sum() + turned[1].sum()).backward()
        answers.append([*turned, query.grad, key.grad])
    tolerance = 1e-5 if dtype == torch.float32 else 2**-6  # torch adds theirs up in 16 bits
    for ours, theirs in zip(*answers, strict=True):
        assert (ours.dtype, ours.stride()) == (theirs.dtype, theirs.stride())
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_loss_and_gradients_stay(name: str) -> None:
    model = family(name).double()
    before = loss_and_gradients(model)
    rotate_in_fewer_passes(model)
    replaced = [module for module in model.modules() if "forward" in vars(module)]
    assert len(replaced) == TURNED[name]
    for key, tensor in loss_and_gradients(model).items():
        torch.testing.assert_close(tensor, before[key], rtol=1e-9, atol=1e-12, msg=key)


def test_other_models_of_the_family_keep_their_own() -> None:
    ours, theirs = family("llama"), family("llama")
    rotate_in_fewer_passes(ours)
    assert not any("forward" in vars(module) for module in theirs.modules())
    attention = type(theirs.model.layers[0].self_attn)  # type: ignore[union-attr,index]
    assert attention.forward.__globals__["apply_rotary_pos_emb"] is apply_rotary_pos_emb


def test_a_family_that_pairs_neighbours_is_left_alone() -> None:
    model = GlmForCausalLM(GlmConfig(**SIZES, pad_token_id=0, partial_rotary_factor=1.0))
    rotate_in_fewer_passes(model)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_layer_that_turns_nothing_is_left_alone() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2))
    rotate_in_fewer_passes(model)
    assert "forward" not in vars(model[0])
