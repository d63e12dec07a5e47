"""Rows in padded blocks against each row alone through torch's own attention."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alignment.experience import batch_from_rows
from alignment.models import row_attention
from alignment.models.loading import load_language_model
from alignment.models.row_attention import SHORT, WIDTH_STEP, in_blocks

LENGTHS = (5, WIDTH_STEP, 1, WIDTH_STEP + 1, 7, 40, WIDTH_STEP, 3)


def parts(heads: int, kv_heads: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    drawn = torch.Generator().manual_seed(0)
    tokens = sum(LENGTHS)
    return [
        torch.randn(1, count, tokens, 8, dtype=dtype, generator=drawn).requires_grad_(True)
        for count in (heads, kv_heads, kv_heads)
    ]


def each_row_alone(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    rows = zip(*(part.split(LENGTHS, dim=2) for part in (query, key, value)), strict=True)
    outputs = [
        F.scaled_dot_product_attention(*row, is_causal=True, scale=scale, enable_gqa=True)
        for row in rows
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_blocks_say_what_each_row_says_alone(heads, kv_heads, scale):
    query, key, value = parts(heads, kv_heads)
    ours = in_blocks(query, key, value, LENGTHS, scale=scale)
    theirs = each_row_alone(query, key, value, scale)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(1))
    of_ours = torch.autograd.grad((ours * upstream).sum(), (query, key, value))
    of_theirs = torch.autograd.grad((theirs * upstream).sum(), (query, key, value))
    for mine, wanted in zip(of_ours, of_theirs, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-11, atol=1e-12)


def test_queries_and_keys_of_a_wider_type_are_taken_to_that_of_the_values():
    """Under autocast the rotary embedding leaves queries and keys in float32."""
    query, key, value = parts(4, 2, torch.float32)
    ours = in_blocks(query, key, value.bfloat16(), LENGTHS, scale=None)
    narrow = [part.bfloat16() for part in (query, key, value)]
    assert torch.equal(ours, in_blocks(*narrow, LENGTHS, scale=None))
    torch.testing.assert_close(
        ours.float(), each_row_alone(query, key, value, None), rtol=0.03, atol=0.03
    )


@pytest.mark.parametrize(("longest", "in_one"), [(SHORT, True), (SHORT + 1, False)])
def test_short_rows_go_in_blocks_in_16_bit_arithmetic_only(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, longest: int, in_one: bool
):
    seen = []

    def noted(*arguments, **settings):
        seen.append(arguments[3])
        return in_blocks(*arguments, **settings)

    monkeypatch.setattr(row_attention, "in_blocks", noted)
    module = load_language_model(tiny_model)
    # the last token predicts nothing and is left out
    batch = batch_from_rows([[1] * (longest - 1), [5, 6]], [[2, 2], [7, 8]])
    plain = module(batch.token_ids, batch.response_mask).new_logprobs
    assert not seen
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = module(batch.token_ids, batch.response_mask).new_logprobs
    layers = module.causal_lm.config.num_hidden_layers
    assert seen == ([(longest, 3)] * layers if in_one else [])
    torch.testing.assert_close(rounded, plain, rtol=0, atol=0.1)
