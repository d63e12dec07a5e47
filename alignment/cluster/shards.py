"""A batch shared among ranks, and the ranks' answers put together again."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.data.batching import plan_ranks
from alignment.experience import PreferenceBatch, TokenBatch, select_rows
from alignment.models.passes import merge_metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One rank's part of a batch.

    `rows` says where in the whole batch. A rank without rows of its own gets a copy of a short
    row and `weight` 0: it takes part in every collective and changes nothing.
    """

    batch: TokenBatch
    rows: tuple[int, ...]
    weight: float


def shard_batch(batch: TokenBatch, num_ranks: int) -> list[Shard]:
    """Rows shared among ranks, balanced by tokens; preference groups stay whole."""
    lengths = batch.attention_mask.sum(1).tolist()
    groups = batch.group.tolist() if isinstance(batch, PreferenceBatch) else None
    shards = []
    for rows in plan_ranks(lengths, num_ranks, groups):
        if rows:
            part = select_rows(batch, rows)
            shards.append(Shard(batch=part, rows=tuple(rows), weight=1.0))
        else:
            shortest = min(range(len(lengths)), key=lambda row: lengths[row])
            shards.append(Shard(batch=select_rows(batch, [shortest]), rows=(), weight=0.0))
    return shards


def merge_grids(batch: TokenBatch, shards: Sequence[Shard], answers: Sequence[Tensor]) -> Tensor:
    """Per-token answers [b, t] of each shard as one float32 [B, T]."""
    merged = torch.zeros(batch.token_ids.shape)
    for shard, answer in zip(shards, answers, strict=True):
        if shard.rows:
            merged[list(shard.rows), : answer.shape[1]] = answer
    return merged


def merge_rows(batch: TokenBatch, shards: Sequence[Shard], answers: Sequence[Tensor]) -> Tensor:
    """Per-sequence answers [b] of each shard as one float32 [B]; [b, heads] as [B, heads]."""
    per_row = max((answer.shape[1:] for answer in answers), key=len)
    merged = torch.zeros(len(batch.token_ids), *per_row)
    for shard, answer in zip(shards, answers, strict=True):
        if shard.rows:
            merged[list(shard.rows)] = answer
    return merged


def merge_metrics(answers: Sequence[dict[str, float]]) -> dict[str, float]:
    """The metrics of each shard as those of the whole batch."""
    merged: dict[str, float] = {}
    for answer in answers:
        for name, value in answer.items():
            merged[name] = merge_metric(name, merged[name], value) if name in merged else value
    return merged
