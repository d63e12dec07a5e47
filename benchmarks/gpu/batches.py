"""Batches of random tokens with lengths like those of answers: many short, a few long."""

from dataclasses import fields

import torch
from torch import Tensor

from alignment.experience import Experience, PreferenceBatch, TokenBatch, batch_from_rows
from benchmarks.gpu.models import Size
from benchmarks.operations import Sequences

RESPONSES_PER_GROUP = 4


def token_batch(size: Size) -> TokenBatch:
    """Prompts and responses, lengths spread evenly on a logarithmic scale; seed 0."""
    drawn = torch.Generator().manual_seed(0)

    def rows(bounds: tuple[int, int]) -> list[list[int]]:
        low, high = (torch.tensor(float(bound)).log() for bound in bounds)
        spread = torch.rand(size.sequences, generator=drawn)
        lengths = (low + (high - low) * spread).exp().long().tolist()
        vocabulary = size.shape.vocabulary
        return [torch.randint(vocabulary, (n,), generator=drawn).tolist() for n in lengths]

    return batch_from_rows(rows(size.prompt_tokens), rows(size.response_tokens))


def preference_batch(batch: TokenBatch) -> PreferenceBatch:
    """Groups of four in which a response is preferred to every later one."""
    rows, members = len(batch.token_ids), RESPONSES_PER_GROUP
    member = torch.arange(rows) % members
    later = torch.arange(members)[None] > member[:, None]
    return PreferenceBatch(
        **_tokens_of(batch),
        group=torch.arange(rows) // members,
        member=member,
        preference=torch.where(later, 1.0, 0.0),
        pair_weight=later.float(),
    )


def experience(batch: TokenBatch, old_logprobs: Tensor, old_values: Tensor) -> Experience:
    """What PPO's update sees: random advantages, returns near the old values."""
    drawn = torch.Generator().manual_seed(1)
    shape, mask = batch.token_ids.shape, batch.response_mask
    advantages, errors = (torch.randn(shape, generator=drawn) * mask for _ in range(2))
    zeros = torch.zeros(len(batch.token_ids))
    return Experience(
        **_tokens_of(batch),
        old_logprobs=old_logprobs,
        reference_logprobs=old_logprobs,
        old_values=old_values,
        advantages=advantages,
        returns=old_values + errors,
        end_values=zeros,
        end_returns=zeros,
    )


def lengths_of(batch: TokenBatch) -> Sequences:
    """Prompt and response lengths."""
    responses = batch.response_mask.sum(1)
    prompts = batch.attention_mask.sum(1) - responses
    return Sequences(tuple(prompts.tolist()), tuple(responses.tolist()))


def _tokens_of(batch: TokenBatch) -> dict[str, Tensor]:
    return {field.name: getattr(batch, field.name) for field in fields(TokenBatch)}
