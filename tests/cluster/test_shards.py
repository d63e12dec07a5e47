"""Sharing a batch among ranks and merging their answers."""

import torch
from role_factory import random_batch

from alignment.cluster.shards import merge_grids, merge_metrics, merge_rows, shard_batch
from alignment.experience import PreferenceBatch


def test_merging_the_shards_own_grids_gives_the_batch_back() -> None:
    batch = random_batch(7, seed=0)
    for ranks in (1, 2, 3, 7, 10):
        shards = shard_batch(batch, ranks)
        assert len(shards) == ranks
        assert sorted(row for shard in shards for row in shard.rows) == list(range(7))
        grid = merge_grids(batch, shards, [s.batch.token_ids.float() for s in shards])
        assert torch.equal(grid, batch.token_ids.float())
        sums = merge_rows(batch, shards, [s.batch.token_ids.sum(1).float() for s in shards])
        assert torch.equal(sums, batch.token_ids.sum(1).float())


def test_a_rank_without_rows_works_on_a_copy_that_does_not_count() -> None:
    batch = random_batch(2, seed=1)
    idle = [shard for shard in shard_batch(batch, 4) if not shard.rows]
    assert len(idle) == 2
    assert all(shard.weight == 0.0 and len(shard.batch.token_ids) == 1 for shard in idle)


def test_preference_groups_stay_whole() -> None:
    tokens = random_batch(6, seed=2)
    batch = PreferenceBatch(
        token_ids=tokens.token_ids,
        attention_mask=tokens.attention_mask,
        response_mask=tokens.response_mask,
        group=torch.tensor([0, 0, 0, 1, 1, 2]),
        member=torch.tensor([0, 1, 2, 0, 1, 0]),
        preference=torch.full((6, 3), 0.5),
        pair_weight=torch.zeros(6, 3),
    )
    for shard in shard_batch(batch, 2):
        groups = {int(batch.group[row]) for row in shard.rows}
        assert all(row in shard.rows for row in range(6) if int(batch.group[row]) in groups)


def test_metrics_add_up_and_maxima_stay_maxima() -> None:
    merged = merge_metrics([{"loss": 1.0, "ratio_max": 2.0}, {"loss": 0.5, "ratio_max": 3.0}])
    assert merged == {"loss": 1.5, "ratio_max": 3.0}
