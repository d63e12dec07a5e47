"""The activation formula against what autograd really saves for a Llama layer."""

from dataclasses import replace
from inspect import signature
from itertools import product

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from alignment.models.lean_layers import keep_less
from alignment.models.modules import LanguageModel
from alignment.models.packing import pack_attention
from alignment.models.row_attention import SHORT
from alignment.objectives.logprobs import KEPT_CHUNKS, token_logprobs
from alignment.planning.calibration import (
    SHORT_ROW_TOKENS,
    VOCABULARY_CHUNK_TOKENS,
    VOCABULARY_KEPT_CHUNKS,
)
from alignment.planning.memory import (
    BatchSizes,
    packing_activations,
    saved_activations,
    vocabulary_logits,
)
from alignment.planning.model_shapes import ModelShape

ROWS, TOKENS = 4, 35  # 140 tokens: no weight has a side of that length


def saved_by_autograd(
    shape: ModelShape,
    *,
    bfloat16: bool,
    checkpointing: bool = False,
    packed: bool = False,
    row_tokens: int = TOKENS,
) -> int:
    """Bytes of distinct storages that autograd keeps of a forward pass, weights and their bf16
    copies apart.
    """
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.attention_heads,
            num_key_value_heads=shape.kv_heads,
            tie_word_embeddings=True,
        )
    ).eval()
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()
    if packed:
        pack_attention(model)
    keep_less(model)
    module = LanguageModel(model)
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    shapes = {tuple(p.shape) for p in module.parameters()}
    sizes: dict[int, int] = {}
    kept = []  # keeps storages alive, so that no address is used twice

    def pack(tensor):
        kept.append(tensor)
        storage = tensor.untyped_storage()
        a_copy = tuple(tensor.shape) in shapes or tuple(tensor.shape[::-1]) in shapes
        if storage.data_ptr() not in weights and not (bfloat16 and a_copy):
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    token_ids = torch.randint(3, shape.vocabulary, (ROWS, row_tokens + packed))
    mask = torch.zeros(ROWS, row_tokens + packed, dtype=torch.bool)
    mask[:, -8:] = True
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16),
    ):
        module(token_ids, mask)
    return sum(sizes.values())


def llama(layers: int, *, hidden: int, intermediate: int, kv_heads: int) -> ModelShape:
    return ModelShape(
        name="x",
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        attention_heads=4,
        kv_heads=kv_heads,
        head_dim=hidden // 4,
        vocabulary=100,
        tied=True,
    )


SIZES = [dict(zip(("hidden", "intermediate", "kv_heads"), s, strict=True)) for s in
         ((64, 96, 4), (128, 96, 4), (64, 192, 4), (64, 96, 1))]  # fmt: skip


@pytest.mark.parametrize(("sizes", "precision"), product(SIZES, ("float32", "bfloat16")))
def test_one_layer_is_what_autograd_saves(sizes, precision):
    """Two depths, so that embedding and vocabulary drop out."""
    bfloat16 = precision == "bfloat16"
    shallow = saved_by_autograd(llama(2, **sizes), bfloat16=bfloat16)
    deep = saved_by_autograd(llama(4, **sizes), bfloat16=bfloat16)
    predicted = saved_activations(llama(1, **sizes), ROWS * TOKENS, precision)
    assert (deep - shallow) / 2 == pytest.approx(predicted, rel=0.02)


@pytest.mark.parametrize("row_tokens", [TOKENS, SHORT_ROW_TOKENS + 1])
@pytest.mark.parametrize(("sizes", "precision"), product(SIZES, ("float32", "bfloat16")))
def test_packed_rows_keep_more_on_a_cpu(sizes, precision, row_tokens):
    how = {"bfloat16": precision == "bfloat16", "packed": True, "row_tokens": row_tokens}
    shallow = saved_by_autograd(llama(2, **sizes), **how)
    deep = saved_by_autograd(llama(4, **sizes), **how)
    one = llama(1, **sizes)
    predicted = saved_activations(one, ROWS * row_tokens, precision)
    predicted += packing_activations(one, ROWS * row_tokens, precision, row_tokens=row_tokens)
    assert (deep - shallow) / 2 == pytest.approx(predicted, rel=0.02)


@pytest.mark.parametrize(("tokens", "kept"), [(700, 700), (1536, 1536), (1537, 0)])
def test_logits_that_autograd_keeps(tokens, kept):
    """Few chunks are kept whole, of many nothing of that size is."""
    sizes = {"hidden": 8, "intermediate": 16, "kv_heads": 4}
    vocabulary, saved = 501, []

    def pack(tensor):
        if tensor.shape[-1:] == (vocabulary,) and len(tensor) > shape.hidden:  # not the head
            saved.append(tensor.nbytes)
        return tensor

    shape = replace(llama(1, **sizes), vocabulary=vocabulary)
    hidden, head = torch.randn(tokens, shape.hidden), torch.randn(vocabulary, shape.hidden)
    hidden.requires_grad_(True)
    chunk = VOCABULARY_CHUNK_TOKENS
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        token_logprobs(hidden, lambda h: h @ head.T, torch.zeros(tokens).long(), chunk_tokens=chunk)
    assert sum(saved) == 4 * vocabulary * kept
    batch = BatchSizes(rows=1, prompt_tokens=0, response_tokens=tokens)
    predicted = vocabulary_logits(shape, batch, tokens, trained=True, on_gpu=False)
    assert predicted == 4 * vocabulary * (kept or chunk)  # their gradient takes their place


def test_what_the_plan_read_in_the_code_is_still_there():
    assert VOCABULARY_KEPT_CHUNKS == KEPT_CHUNKS
    assert SHORT_ROW_TOKENS == SHORT
    assert signature(LanguageModel).parameters["chunk_tokens"].default == VOCABULARY_CHUNK_TOKENS


def test_checkpointing_leaves_one_hidden_state_a_layer():
    sizes = SIZES[0]
    shallow = saved_by_autograd(llama(2, **sizes), bfloat16=False, checkpointing=True)
    deep = saved_by_autograd(llama(4, **sizes), bfloat16=False, checkpointing=True)
    assert (deep - shallow) / 2 == 4 * sizes["hidden"] * ROWS * TOKENS
