"""Causal attention of packed rows, each with itself.

Query [1, heads, N, d], key and value [1, kv heads, N, d] hold the rows one after the other; the
answer is [1, N, heads, d]. Three ways to the same numbers, by device and type:

- row by row through torch's kernel: on a CPU in float32, and for long rows;
- in padded blocks of plain products: short rows on a CPU in 16-bit arithmetic, where the kernel
  takes longer than the layer's other products together (docs/log.md);
- one variable-length launch for all: on a GPU in 16-bit arithmetic.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

AT_ONCE: tuple[str, ...] = ("cuda",)
"""Kinds of device where torch has one launch for all rows."""

SHORT = 256
"""Tokens of the longest row that is put into a block: a block keeps width x width weights."""

WIDTH_STEP = 16
"""Rows whose lengths round up to the same multiple of this many tokens share a block."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Where packed rows lie: int32 `offsets` [B + 1] on the device, and `lengths` here."""

    offsets: Tensor
    lengths: tuple[int, ...]


def row_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, rows: Rows, **settings: Any
) -> Tensor:
    """Attention as `module`, one of transformers' attention layers, asks for it in `settings`."""
    if value.dtype not in (torch.bfloat16, torch.float16):
        return _row_by_row(module, query, key, value, rows.lengths, settings)
    if query.device.type in AT_ONCE:
        return _at_once(query, key, value, rows, scale=settings.get("scaling"))
    if max(rows.lengths) > SHORT:
        return _row_by_row(module, query, key, value, rows.lengths, settings)
    return in_blocks(query, key, value, rows.lengths, scale=settings.get("scaling"))


def in_blocks(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], *, scale: float | None
) -> Tensor:
    """Rows of about one length together, padded to the longest, as plain products.

    Places beyond a row's end repeat its last token. No real token attends to them, for they come
    later, and their own outputs are dropped. Rounds as transformers' eager attention does: the
    softmax in float32, its weights to the type of `value`.
    """
    starts = [0, *accumulate(lengths)]
    by_token = [part[0].transpose(0, 1).to(value.dtype) for part in (query, key, value)]
    blocks: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        blocks.setdefault(-(-length // WIDTH_STEP), []).append(row)
    outputs: list[Tensor] = []
    place = torch.empty(starts[-1], dtype=torch.long)  # of each token among all outputs
    filled = 0
    for members in blocks.values():
        first = torch.tensor([starts[row] for row in members])[:, None]
        length = torch.tensor([lengths[row] for row in members])[:, None]
        column = torch.arange(int(length.max()))
        tokens = first + column.minimum(length - 1)
        is_real = (column < length).flatten()
        place[tokens.flatten()[is_real]] = filled + is_real.nonzero().squeeze(1)
        filled += tokens.numel()
        chosen, shape = tokens.flatten().to(query.device), tokens.shape
        padded = (part.index_select(0, chosen).unflatten(0, shape) for part in by_token)
        outputs.append(_block(*padded, scale=scale).flatten(0, 1))
    return torch.cat(outputs).index_select(0, place.to(query.device))[None]


def _block(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None) -> Tensor:
    """Query [b, t, heads, d], key and value [b, t, kv heads, d] to [b, t, heads, d]."""
    _, width, heads, size = query.shape
    sharing = heads // key.shape[2]
    # queries that share a key head lie in one matrix, [b, kv heads, sharing x t, d]
    query = query.unflatten(2, (-1, sharing)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    key, value = key.transpose(1, 2), value.transpose(1, 2)
    scores = (query @ key.transpose(2, 3)).unflatten(2, (sharing, width))
    later = torch.ones(width, width, dtype=torch.bool, device=query.device).triu(1)
    scores = (scores * (scale or size**-0.5)).masked_fill(later, -torch.inf)
    weights = scores.softmax(-1, dtype=torch.promote_types(value.dtype, torch.float32))
    output = weights.to(value.dtype).flatten(2, 3) @ value
    return output.unflatten(2, (sharing, width)).permute(0, 3, 1, 2, 4).flatten(2, 3)


def _row_by_row(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    settings: dict[str, Any],
) -> Tensor:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    rows = zip(*(part.split(list(lengths), dim=2) for part in (query, key, value)), strict=True)
    outputs = [sdpa_attention_forward(module, *row, None, **settings)[0] for row in rows]
    return torch.cat(outputs, dim=1)


def _at_once(
    query: Tensor, key: Tensor, value: Tensor, rows: Rows, *, scale: float | None
) -> Tensor:
    """Key and value heads are repeated for the queries that share them."""
    from torch.nn.attention.varlen import varlen_attn

    heads, longest = query.shape[1], max(rows.lengths)
    by_token = [
        part[0]
        .repeat_interleave(heads // part.shape[1], dim=0)
        .transpose(0, 1)
        .to(value.dtype)
        .contiguous()
        for part in (query, key, value)
    ]
    causal = (-1, 0)  # all tokens before, none after
    output: Tensor = varlen_attn(
        *by_token, rows.offsets, rows.offsets, longest, longest, scale=scale, window_size=causal
    )
    return output[None]
