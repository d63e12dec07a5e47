"""Randomly initialised models of known shapes, made on the device without a file or a download."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from alignment.models.modules import LanguageModel, ValueModel, new_value_head
from alignment.models.packing import PACKED, pack_attention
from alignment.planning.known_shapes import KNOWN_SHAPES
from alignment.planning.model_shapes import ModelShape


@dataclass(frozen=True, slots=True)
class Size:
    """A model, and how much of it is asked at a time."""

    shape: ModelShape
    sequences: int
    prompt_tokens: tuple[int, int]
    response_tokens: tuple[int, int]
    tokens_per_microbatch: int


SIZES = {
    "qwen2.5-0.5b": Size(KNOWN_SHAPES["qwen2.5-0.5b"], 64, (32, 256), (32, 512), 16384),
    "qwen2.5-1.5b": Size(KNOWN_SHAPES["qwen2.5-1.5b"], 64, (32, 256), (32, 512), 16384),
    "qwen2.5-3b": Size(KNOWN_SHAPES["qwen2.5-3b"], 64, (32, 256), (32, 512), 16384),
    "tiny": Size(KNOWN_SHAPES["tiny"], 8, (4, 16), (4, 32), 128),
}


def language_model(shape: ModelShape, device: torch.device) -> LanguageModel:
    """A causal language model, float32, drawn from seed 0."""
    from transformers import AutoModelForCausalLM

    return LanguageModel(_drawn(AutoModelForCausalLM, shape, device))


def value_model(shape: ModelShape, device: torch.device) -> ValueModel:
    """A value model, float32, drawn from seed 0."""
    from transformers import AutoModel

    head = new_value_head(shape.hidden, seed=0).to(device)
    return ValueModel(_drawn(AutoModel, shape, device), head, mean=0.0, scale=1.0)


def pack(module: LanguageModel | ValueModel, *, packed: bool) -> None:
    """Let the module's rows be packed, or padded, from now on."""
    module.backbone.set_attn_implementation(PACKED if packed else "sdpa")


def _drawn(auto_class: Any, shape: ModelShape, device: torch.device) -> nn.Module:
    from transformers import Qwen2Config

    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.attention_heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=shape.tied,
    )
    torch.manual_seed(0)
    with device:
        model = auto_class.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    pack_attention(model)
    module: nn.Module = model.eval()
    return module
