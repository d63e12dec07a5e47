"""Backbones that compute on real tokens only.

The rows of a batch are laid one after the other, without padding: every layer but attention works
token by token and cannot tell. Attention is that of each row with itself
(`alignment.models.row_attention`).

Rows are right-padded and a row's first `length` tokens count. Either way the hidden states come
back flat, [N, H], with where each row starts.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alignment.models.row_attention import Rows, row_attention

PACKED = "alignflow_packed"
"""Our attention's name among those of transformers."""

DEVICES: tuple[str, ...] = ("cpu", "cuda")
"""Kinds of device on which rows are packed."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """Hidden states [N, H] of all rows; row b's token t is at `starts[b] + t`."""

    states: Tensor
    starts: Tensor


def pack_attention(model: Any) -> None:
    """Let a transformers model take packed rows, if its attention is plain and causal."""
    config = model.config
    windows = getattr(config, "sliding_window", None), getattr(config, "layer_types", None) or ()
    is_plain = not windows[0] and all(kind == "full_attention" for kind in windows[1])
    if is_plain and config._attn_implementation == "sdpa":
        _register()
        model.set_attn_implementation(PACKED)


def packs(backbone: Any) -> bool:
    """Whether rows will be packed: the model can, on this kind of device."""
    settings = getattr(backbone, "config", None)
    if getattr(settings, "_attn_implementation", None) != PACKED:
        return False
    device: torch.device = next(backbone.parameters()).device
    return device.type in DEVICES


def hidden_states(backbone: Any, token_ids: Tensor, lengths: Tensor) -> Hidden:
    """Hidden states of the first `lengths[b]` tokens of each row, at least one.

    Args:
        backbone: a transformers decoder, or anything that is called like one.
        token_ids: int64 [B, T], right-padded.
        lengths: int64 [B].
    """
    rows, width = token_ids.shape
    if not packs(backbone):
        states = backbone(input_ids=token_ids, use_cache=False)[0]
        return Hidden(states.flatten(0, 1), torch.arange(rows, device=token_ids.device) * width)
    lengths = lengths.clamp(min=1)
    positions = torch.arange(width, device=token_ids.device).expand(rows, width)
    is_kept = positions < lengths[:, None]
    offsets = F.pad(lengths.cumsum(0), (1, 0)).int()
    states = backbone(
        input_ids=token_ids[is_kept][None],
        position_ids=positions[is_kept][None],
        attention_mask=_UNUSED,
        use_cache=False,
        packed_rows=Rows(offsets, tuple(lengths.tolist())),
    )[0]
    return Hidden(states[0], lengths.cumsum(0) - lengths)


_UNUSED = torch.ones(1, 1, 1, 1, dtype=torch.bool)
"""A mask of four dimensions is handed on as it is; else one of N x N would be built."""


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_rows: Rows | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each row with itself; [1, heads, N, d] in, [1, N, heads, d] out."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if packed_rows is None:  # somebody else's call, padded
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    return row_attention(module, query, key, value, packed_rows, **settings), None


def _register() -> None:
    """Make the attention known to transformers in this process; again is harmless."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(PACKED, _attention)
    AttentionMaskInterface.register(PACKED, sdpa_mask)
