"""Token batches, and what PPO knows about them at each moment.

A batch grows by type, not by key: `Rollout` (what the sampler returned) becomes
`ScoredRollout` (what the models say about it), then `Experience` (what the update needs).

All per-token tensors share one grid of shape [B, T], right-padded. Entry [b, t] speaks about
token t: `old_logprobs[b, t]` is the log-probability of token t given tokens 0..t-1, and
`old_values[b, t]` is the value of the state *before* token t is emitted. The shift between
a model's outputs and this grid is made in one place, `alignment.objectives.logprobs`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompt:
    """A prompt as the policy's tokens, chat template applied once."""

    id: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How responses are drawn. No top-p or top-k: log-probabilities must be the policy's own."""

    max_response_tokens: int
    temperature: float = 1.0


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """B sequences of prompt and response tokens.

    token_ids: int64 [B, T]. attention_mask: bool [B, T], True at real tokens (prefix of each
    row). response_mask: bool [B, T], True at tokens the loss may speak about.
    """

    token_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor


@dataclass(frozen=True, kw_only=True)
class PreferenceBatch(TokenBatch):
    """Responses of whole preference groups, one row a response.

    group: int64 [B], equal for the responses of one prompt. member: int64 [B], the row's
    place k in its group. preference: float32 [B, K], target probability that this row beats
    member k of its group. pair_weight: float32 [B, K], 0 where the pair is not compared;
    each compared pair has weight in exactly one of its two rows.
    """

    group: Tensor
    member: Tensor
    preference: Tensor
    pair_weight: Tensor


@dataclass(frozen=True, kw_only=True)
class Rollout(TokenBatch):
    """Sampled responses.

    sampling_logprobs: float32 [B, T], the engine's own log-probability of each response token
    at the sampling temperature, 0 elsewhere. finished: bool [B], True if the response ended
    with its end-of-turn token, False if it met the token limit. prompt_index: int64 [B], which
    of the step's prompts. policy_version: int64 [B], the version of the weights that sampled it.
    """

    sampling_logprobs: Tensor
    finished: Tensor
    prompt_index: Tensor
    policy_version: Tensor


@dataclass(frozen=True, kw_only=True)
class ScoredRollout(Rollout):
    """A rollout with what each model says of it.

    scores: float32 [B], reward-model score of the whole response. old_logprobs and
    reference_logprobs: float32 [B, T], by the policy before the update and by the reference.
    old_values: float32 [B, T], by the critic before the update, 0 for a method without one. All
    are 0 outside response_mask. end_values: float32 [B], the critic's after the last response
    token, 0 where it was not asked.
    """

    scores: Tensor
    old_logprobs: Tensor
    reference_logprobs: Tensor
    old_values: Tensor
    end_values: Tensor


@dataclass(frozen=True, kw_only=True)
class Experience(TokenBatch):
    """What the update needs. All float32 [B, T], 0 outside response_mask, but for the last two.

    old_logprobs are what the ratio starts from. advantages are final: whitened over the whole
    rollout batch and weighted for the sampler, where settings say so. returns, the critic's
    targets, were taken before both. end_values and end_returns, float32 [B], are those of the
    step after the last response token, where the score is paid there.
    """

    old_logprobs: Tensor
    reference_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor
    end_values: Tensor
    end_returns: Tensor


BatchT = TypeVar("BatchT", bound=TokenBatch)


def batch_from_rows(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> TokenBatch:
    """Right-padded batch of prompt+response rows; pad positions hold token 0 and are masked."""
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    token_ids = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    attention_mask = torch.zeros_like(token_ids, dtype=torch.bool)
    response_mask = torch.zeros_like(attention_mask)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        token_ids[row, : lengths[row]] = torch.tensor([*prompt, *response], dtype=torch.int64)
        attention_mask[row, : lengths[row]] = True
        response_mask[row, len(prompt) : lengths[row]] = True
    return TokenBatch(
        token_ids=token_ids, attention_mask=attention_mask, response_mask=response_mask
    )


def select_rows(batch: BatchT, rows: Sequence[int] | Tensor) -> BatchT:
    """The given rows of every field, cut to the longest of them (padding is dropped)."""
    index = torch.as_tensor(rows, dtype=torch.int64)
    longest = int(batch.attention_mask[index].sum(1).max()) if len(index) else 0
    width = batch.token_ids.shape[1]
    selected: dict[str, Any] = {}
    for f in fields(batch):
        tensor: Tensor = getattr(batch, f.name)[index]
        on_grid = tensor.ndim == 2 and tensor.shape[1] == width and f.name not in _NOT_ON_GRID
        selected[f.name] = tensor[:, :longest] if on_grid else tensor
    return replace(batch, **selected)


_NOT_ON_GRID = {"preference", "pair_weight"}
