"""Which rows go together: microbatches by token budget, shards by rank, minibatches by seed.

The planners are pure functions of lengths: the same numbers always give the same plan, on every
rank and after every resume. A *group* is the set of rows that must stay together, such as the
responses of one prompt.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from alignment.data.chat import EncodedExample
from alignment.data.validation import check_record
from alignment.experience import PreferenceBatch, TokenBatch, batch_from_rows
from alignment.records import PreferenceGroup, Prompt, Response


def plan_microbatches(
    lengths: Sequence[int],
    *,
    tokens_per_microbatch: int,
    groups: Sequence[int] | None = None,
) -> list[list[int]]:
    """Cut rows into microbatches whose padded size (rows x longest row) is within the budget.

    Of all such cuts of the rows sorted by length, the one with the least padding, where one more
    microbatch counts as much as `budget / 32` padded tokens: it costs a kernel launch and a pass
    over the gradients. Longest first, so that running out of memory shows in the first
    microbatch. A row or group that alone exceeds the budget is a microbatch of its own. Every
    row occurs exactly once.
    """
    units = sorted(_units(lengths, groups), key=lambda unit: (-unit.longest, unit.rows[0]))
    one_more = tokens_per_microbatch / 32
    runs: list[int] = []  # of each unit: where the units of its length begin
    for index, unit in enumerate(units):
        same = index > 0 and units[index - 1].longest == unit.longest
        runs.append(runs[-1] if same else index)
    rows_before = [0, *accumulate(len(unit.rows) for unit in units)]
    # cheapest[i] is the cost of the first i units, and where the last microbatch then starts.
    cheapest: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(units) + 1):
        options = []
        # Taking in one more unit of the same length never costs more, so that one start is tried
        # for each length: the earliest that fits.
        last = end - 1
        while last >= 0:
            longest = units[last].longest
            most_rows = tokens_per_microbatch // longest if longest else rows_before[end]
            earliest = bisect_left(rows_before, rows_before[end] - most_rows)
            start = min(max(earliest, runs[last]), end - 1)
            if start > last:
                break
            padded = (rows_before[end] - rows_before[start]) * longest
            options.append((cheapest[start][0] + padded + one_more, start))
            last = start - 1 if start == runs[start] else -1
        cheapest.append(min(options))
    plan: list[list[int]] = []
    end = len(units)
    while end:
        start = cheapest[end][1]
        plan.append([row for unit in units[start:end] for row in unit.rows])
        end = start
    return plan[::-1]


def plan_packed(
    lengths: Sequence[int],
    *,
    tokens_per_microbatch: int,
    groups: Sequence[int] | None = None,
) -> list[list[int]]:
    """Cut rows without padding into as few microbatches within the budget as balance allows.

    A row or group that alone exceeds the budget is a microbatch of its own. Every row occurs
    exactly once; microbatches of equal size are as likely to fit as any.
    """
    if not lengths:
        return []
    budget = max(tokens_per_microbatch, *(unit.tokens for unit in _units(lengths, groups)))
    count = max(1, -(-sum(lengths) // budget))
    while True:
        plan = plan_ranks(lengths, count, groups)
        if all(sum(lengths[row] for row in rows) <= budget for rows in plan):
            return [rows for rows in plan if rows]
        count += 1


def plan_ranks(
    lengths: Sequence[int], num_ranks: int, groups: Sequence[int] | None = None
) -> list[list[int]]:
    """Share rows among ranks, balanced by tokens: the largest unit goes to the emptiest rank.

    Returns `num_ranks` lists of ascending rows; some are empty if there are fewer units.
    """
    if num_ranks < 1:
        raise ValueError(f"num_ranks is {num_ranks}; accepted: 1 or more")
    shards: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for unit in sorted(_units(lengths, groups), key=lambda unit: (-unit.tokens, unit.rows[0])):
        # An equal load is broken by row count, so rows of length 0 spread out too.
        rank = min(range(num_ranks), key=lambda r: (loads[r], len(shards[r]), r))
        shards[rank].extend(unit.rows)
        loads[rank] += unit.tokens
    return [sorted(shard) for shard in shards]


def minibatch_order(num_items: int, *, size: int, seed: int, epoch: int) -> list[list[int]]:
    """Every item once, shuffled by (seed, epoch), cut into minibatches; the last may be short."""
    if size < 1:
        raise ValueError(f"minibatch size is {size}; accepted: 1 or more")
    order = np.random.default_rng([seed, epoch]).permutation(num_items).tolist()
    return [order[start : start + size] for start in range(0, num_items, size)]


def sft_batch(examples: Sequence[EncodedExample]) -> TokenBatch:
    """Demonstrations as one right-padded batch; the loss may speak about response tokens only."""
    return batch_from_rows([e.prompt_ids for e in examples], [e.response_ids for e in examples])


def preference_batch(
    groups: Sequence[PreferenceGroup], encode: Callable[[Prompt, Response], EncodedExample]
) -> PreferenceBatch:
    """All responses of the groups, one row each, with the comparisons among them.

    Row order: groups as given, members as in `group.responses`. The weight of a comparison is
    in the row of its `first` response; `preference` is filled from both sides and 0.5 where
    nothing is known.

    Raises:
        DataError: a group or one of its comparisons cannot be used (see `validation`).
    """
    for group in groups:
        check_record(group, f"preference group {group.prompt.id}")
    examples = [encode(g.prompt, response) for g in groups for response in g.responses]
    tokens = sft_batch(examples)
    most = max(len(g.responses) for g in groups)
    preference = torch.full((len(examples), most), 0.5)
    pair_weight = torch.zeros(len(examples), most)
    offset = 0
    for group in groups:
        for comparison in group.comparisons:
            first, second = comparison.first, comparison.second
            preference[offset + first, second] = comparison.preference
            preference[offset + second, first] = 1 - comparison.preference
            pair_weight[offset + first, second] = comparison.weight
        offset += len(group.responses)
    return PreferenceBatch(
        token_ids=tokens.token_ids,
        attention_mask=tokens.attention_mask,
        response_mask=tokens.response_mask,
        group=torch.tensor([g for g, group in enumerate(groups) for _ in group.responses]),
        member=torch.tensor([k for group in groups for k in range(len(group.responses))]),
        preference=preference,
        pair_weight=pair_weight,
    )


@dataclass(frozen=True, slots=True)
class _Unit:
    """Rows that stay together: their indices, longest length and total tokens."""

    rows: tuple[int, ...]
    longest: int
    tokens: int


def _units(lengths: Sequence[int], groups: Sequence[int] | None) -> list[_Unit]:
    if groups is None:
        return [_Unit((row,), length, length) for row, length in enumerate(lengths)]
    if len(groups) != len(lengths):
        raise ValueError(f"{len(lengths)} lengths but {len(groups)} groups; give one a row")
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(int(group), []).append(row)
    return [
        _Unit(tuple(rows), max(lengths[r] for r in rows), sum(lengths[r] for r in rows))
        for rows in members.values()
    ]
