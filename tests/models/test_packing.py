"""Rows without padding say what padded rows say, values and gradients."""

from pathlib import Path

import pytest
import torch

from alignment.experience import TokenBatch, batch_from_rows
from alignment.models.loading import load_language_model, load_value_model
from alignment.models.modules import LanguageModel, ValueModel
from alignment.models.packing import PACKED, hidden_states, packs
from alignment.models.passes import microbatches

BATCH = batch_from_rows([[1, 7, 9], [1, 30, 31, 32, 33], [2]], [[11, 12], [40, 41, 42, 43], [5]])


def both_ways(module: LanguageModel | ValueModel) -> list[dict[str, torch.Tensor]]:
    """Outputs and gradients, packed and padded."""
    seen = []
    for attention in (PACKED, "sdpa"):
        module.backbone.set_attn_implementation(attention)
        assert packs(module.backbone) == (attention == PACKED)
        module.zero_grad()
        if isinstance(module, LanguageModel):
            outputs = module(BATCH.token_ids, BATCH.response_mask)
            told = {"logprobs": outputs.new_logprobs, "entropy": outputs.entropy}
        else:
            outputs = module(BATCH.token_ids, BATCH.attention_mask, BATCH.response_mask)
            told = {"values": outputs.new_values, "scores": outputs.scores}
        sum(tensor.square().sum() for tensor in told.values()).backward()
        gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
        seen.append({**told, **{name: gradient.clone() for name, gradient in gradients.items()}})
    return seen


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_rows_give_the_same_logprobs_and_gradients(
    tiny_model: Path, checkpointing: bool
) -> None:
    module = load_language_model(tiny_model, gradient_checkpointing=checkpointing).double()
    packed, padded = both_ways(module)
    assert set(packed) == set(padded)
    for name, tensor in packed.items():
        torch.testing.assert_close(tensor, padded[name], atol=1e-6, rtol=1e-6)


def test_packed_rows_give_the_same_values_scores_and_gradients(tiny_model: Path) -> None:
    packed, padded = both_ways(load_value_model(tiny_model, seed=3))
    for name, tensor in packed.items():
        torch.testing.assert_close(tensor, padded[name], atol=1e-5, rtol=1e-5)


def test_padding_is_not_computed(tiny_model: Path) -> None:
    backbone = load_value_model(tiny_model).backbone
    lengths = BATCH.attention_mask.sum(1)
    hidden = hidden_states(backbone, BATCH.token_ids, lengths)
    assert len(hidden.states) == int(lengths.sum()) < BATCH.token_ids.numel()
    assert hidden.starts.tolist() == [0, 5, 14]


def test_a_row_says_the_same_whatever_it_is_packed_with(tiny_model: Path) -> None:
    backbone = load_value_model(tiny_model).backbone
    lengths = BATCH.attention_mask.sum(1)
    together = hidden_states(backbone, BATCH.token_ids, lengths).states
    alone = hidden_states(backbone, BATCH.token_ids[1:2], lengths[1:2]).states
    torch.testing.assert_close(together[5:14], alone, atol=1e-6, rtol=1e-6)


def test_a_sliding_window_is_left_padded(tiny_model: Path) -> None:
    from alignment.models.packing import pack_attention

    backbone = load_value_model(tiny_model).backbone
    backbone.set_attn_implementation("sdpa")
    backbone.config.sliding_window = 4
    pack_attention(backbone)
    assert not packs(backbone)


def test_other_callers_keep_their_masks(tiny_model: Path) -> None:
    causal_lm = load_language_model(tiny_model).causal_lm
    ids, mask = torch.tensor([[0, 0, 1, 7], [1, 5, 6, 7]]), torch.ones(2, 4, dtype=torch.long)
    mask[0, :2] = 0
    ours = causal_lm(input_ids=ids, attention_mask=mask).logits
    causal_lm.set_attn_implementation("sdpa")
    torch.testing.assert_close(ours, causal_lm(input_ids=ids, attention_mask=mask).logits)


def test_packed_microbatches_are_few_and_within_the_budget(tiny_model: Path) -> None:
    module = load_value_model(tiny_model)
    lengths = [40, 3, 3, 3, 3, 3, 3, 3]
    batch: TokenBatch = batch_from_rows([[1] * (n - 1) for n in lengths], [[2]] * len(lengths))
    assert len(microbatches(module, batch, tokens=64)) == 1
    module.backbone.set_attn_implementation("sdpa")
    assert len(microbatches(module, batch, tokens=64)) == 2
