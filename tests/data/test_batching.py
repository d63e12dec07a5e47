from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.data.batching import (
    minibatch_order,
    plan_microbatches,
    plan_packed,
    plan_ranks,
    preference_batch,
    sft_batch,
)
from alignment.data.chat import EncodedExample
from alignment.errors import DataError
from alignment.records import Comparison, Message, PreferenceGroup, Prompt, Response

rows = st.lists(st.integers(1, 50), min_size=1, max_size=40)
grouped_rows = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 8)), min_size=1, max_size=40)


def padded_tokens(lengths, microbatch):
    return len(microbatch) * max(lengths[r] for r in microbatch)


@settings(deadline=None)
@given(rows, st.integers(1, 300))
def test_each_row_is_in_one_microbatch_within_the_budget(lengths, budget):
    plan = plan_microbatches(lengths, tokens_per_microbatch=budget)
    assert sorted(r for m in plan for r in m) == list(range(len(lengths)))
    for microbatch in plan:
        assert len(microbatch) == 1 or padded_tokens(lengths, microbatch) <= budget


@settings(deadline=None)
@given(grouped_rows, st.integers(1, 300))
def test_packed_rows_fill_the_budget_evenly(rows, budget):
    lengths, groups = zip(*rows, strict=True)
    plan = plan_packed(lengths, tokens_per_microbatch=budget, groups=groups)
    assert sorted(r for m in plan for r in m) == list(range(len(lengths)))
    largest = max(sum(n for n, g in rows if g == group) for group in groups)
    assert all(sum(lengths[r] for r in m) <= max(budget, largest) for m in plan)
    assert all(
        {groups[r] for r in m}.isdisjoint(groups[r] for r in other)
        for m in plan
        for other in plan
        if m is not other
    )
    assert plan_packed([], tokens_per_microbatch=budget) == []


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 300))
def test_no_cut_of_the_sorted_rows_has_less_padding(lengths, budget):
    def cost(cut):
        return sum(padded_tokens(lengths, m) for m in cut) + len(cut) * budget / 32

    def fits(cut):
        return all(len(m) == 1 or padded_tokens(lengths, m) <= budget for m in cut)

    longest_first = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    cuts = []
    for places in product([False, True], repeat=len(lengths) - 1):
        ends = [i + 1 for i, here in enumerate(places) if here] + [len(lengths)]
        cuts.append([longest_first[a:b] for a, b in pairwise([0, *ends])])
    best = min(cost(cut) for cut in cuts if fits(cut))
    assert cost(plan_microbatches(lengths, tokens_per_microbatch=budget)) == pytest.approx(best)


def test_the_longest_rows_come_first():
    plan = plan_microbatches([3, 9, 4, 8, 1], tokens_per_microbatch=18)
    longest = [max([3, 9, 4, 8, 1][row] for row in microbatch) for microbatch in plan]
    assert longest == sorted(longest, reverse=True)


@settings(deadline=None)
@given(grouped_rows, st.integers(1, 300))
def test_groups_are_never_split_and_budgets_hold(rows_with_groups, budget):
    lengths, groups = zip(*rows_with_groups, strict=True)
    plan = plan_microbatches(lengths, tokens_per_microbatch=budget, groups=groups)
    assert sorted(r for m in plan for r in m) == list(range(len(lengths)))
    homes = [{m for m, micro in enumerate(plan) for r in micro if groups[r] == g} for g in groups]
    assert all(len(home) == 1 for home in homes)
    for microbatch in plan:
        one_group = len({groups[r] for r in microbatch}) == 1
        assert one_group or padded_tokens(lengths, microbatch) <= budget


def test_microbatches_by_hand():
    # One more microbatch costs 180 / 32 = 5.6 tokens: worth it for 50 tokens of padding, not 2.
    lengths = [39, 90, 40, 88]
    assert plan_microbatches(lengths, tokens_per_microbatch=180) == [[1, 3], [2, 0]]
    assert plan_microbatches(lengths, tokens_per_microbatch=179) == [[1], [3], [2, 0]]
    assert plan_microbatches([30, 2, 2], tokens_per_microbatch=10) == [[0], [1, 2]]
    # The group's own longest row counts for all rows of its microbatch.
    assert plan_microbatches([5, 1, 5, 1], tokens_per_microbatch=19, groups=[7, 7, 3, 3]) == [
        [0, 1],
        [2, 3],
    ]
    assert plan_microbatches([5, 1, 5, 1], tokens_per_microbatch=20, groups=[7, 7, 3, 3]) == [
        [0, 1, 2, 3]
    ]


def test_nothing_to_plan_is_no_microbatch():
    assert plan_microbatches([], tokens_per_microbatch=8) == []


@settings(deadline=None)
@given(grouped_rows, st.integers(1, 6), st.booleans())
def test_ranks_share_all_rows_and_differ_by_at_most_the_largest_unit(rows_with_groups, ranks, cut):
    lengths, groups = zip(*rows_with_groups, strict=True)
    shards = plan_ranks(lengths, ranks, groups=groups if cut else None)
    assert len(shards) == ranks
    assert sorted(r for s in shards for r in s) == list(range(len(lengths)))
    keys = groups if cut else range(len(lengths))
    sizes: dict[int, int] = {}
    for key, length in zip(keys, lengths, strict=True):
        sizes[key] = sizes.get(key, 0) + length
    loads = [sum(lengths[r] for r in s) for s in shards]
    assert max(loads) - min(loads) <= max(sizes.values())
    for key in sizes:
        assert sum(any(keys[r] == key for r in s) for s in shards) == 1


def test_ranks_by_hand():
    assert plan_ranks([5, 3, 3, 1], 2) == [[0, 3], [1, 2]]
    assert plan_ranks([5], 3) == [[0], [], []]
    # Taken in the order given, without sorting, the second rank would get 9 of 14.
    assert plan_ranks([1, 1, 1, 3, 8], 2) == [[4], [0, 1, 2, 3]]


def test_plans_refuse_what_makes_no_sense():
    with pytest.raises(ValueError, match="num_ranks is 0"):
        plan_ranks([1], 0)
    with pytest.raises(ValueError, match="2 lengths but 1 groups"):
        plan_microbatches([1, 2], tokens_per_microbatch=9, groups=[0])
    with pytest.raises(ValueError, match="minibatch size is 0"):
        minibatch_order(3, size=0, seed=0, epoch=0)


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(1, 9), st.integers(0, 5), st.integers(0, 5))
def test_minibatches_hold_each_item_once_and_only_the_last_is_short(items, size, seed, epoch):
    order = minibatch_order(items, size=size, seed=seed, epoch=epoch)
    assert sorted(i for m in order for i in m) == list(range(items))
    assert all(len(m) == size for m in order[:-1])
    assert order == minibatch_order(items, size=size, seed=seed, epoch=epoch)


def test_seed_and_epoch_each_change_the_order():
    orders = [
        str(minibatch_order(64, size=8, seed=seed, epoch=epoch))
        for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]
    ]
    assert len(set(orders)) == 4


def test_minibatch_order_is_pinned_so_that_a_resume_sees_the_same_data():
    expected = [[2, 1, 4], [0, 5, 6], [3]]
    assert minibatch_order(7, size=3, seed=3, epoch=1) == expected


def make_group(number_of_responses, *comparisons, id="p"):
    prompt = Prompt(id=id, messages=(Message(role="user", content="x" * (1 + len(id))),))
    responses = tuple(
        Response(id=f"{id}-{k}", text="y" * (k + 1)) for k in range(number_of_responses)
    )
    return PreferenceGroup(prompt=prompt, responses=responses, comparisons=comparisons)


def encode(prompt, response):
    size = len(prompt.messages[0].content)
    return EncodedExample((5,) * size, (*range(10, 10 + len(response.text)), 2))


def test_sft_batch_marks_response_tokens_only():
    batch = sft_batch([EncodedExample((4, 5), (6, 2)), EncodedExample((4,), (2,))])
    assert batch.token_ids.tolist() == [[4, 5, 6, 2], [4, 2, 0, 0]]
    assert batch.attention_mask.int().tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.response_mask.int().tolist() == [[0, 0, 1, 1], [0, 1, 0, 0]]


def test_preference_batch_layout_by_hand():
    first = make_group(3, Comparison(first=2, second=0, preference=0.75, weight=2.0), id="a")
    second = make_group(2, Comparison(first=0, second=1, preference=1.0), id="bb")
    batch = preference_batch([first, second], encode)
    assert batch.group.tolist() == [0, 0, 0, 1, 1]
    assert batch.member.tolist() == [0, 1, 2, 0, 1]
    assert batch.group.dtype == batch.member.dtype == torch.int64
    assert batch.preference.dtype == batch.pair_weight.dtype == torch.float32
    assert batch.preference.tolist() == [
        [0.5, 0.5, 0.25],
        [0.5, 0.5, 0.5],
        [0.75, 0.5, 0.5],
        [0.5, 1.0, 0.5],
        [0.0, 0.5, 0.5],
    ]
    assert batch.pair_weight.tolist() == [
        [0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0],
        [2.0, 0.0, 0.0],
        [0.0, 1.0, 0.0],
        [0.0, 0.0, 0.0],
    ]
    assert batch.token_ids[2].tolist() == [5, 5, 10, 11, 12, 2]
    assert batch.token_ids[3].tolist() == [5, 5, 5, 10, 2, 0]
    assert batch.response_mask.sum(1).tolist() == [2, 3, 4, 2, 3]


@pytest.mark.parametrize(
    ("comparisons", "told"),
    [
        ([(0, 0)], "compares response 0 with 0"),
        ([(0, 2)], "from 0 to 1"),
        ([(-1, 0)], "compares response -1"),
        ([(0, 1), (1, 0)], r"\[0, 1\] are compared twice"),
    ],
)
def test_preference_batch_refuses_impossible_comparisons(comparisons, told):
    group = make_group(2, id="bad")
    pairs = tuple(Comparison(first=a, second=b, preference=1.0) for a, b in comparisons)
    with pytest.raises(DataError, match=f"bad.*{told}"):
        preference_batch([replace(group, comparisons=pairs)], encode)


def test_preference_batch_refuses_a_group_without_responses():
    with pytest.raises(DataError, match="lonely, field responses: no responses"):
        preference_batch([make_group(2), make_group(0, id="lonely")], encode)
