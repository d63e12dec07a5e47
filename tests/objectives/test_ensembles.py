"""Draws of prompts and pessimistic scores of an ensemble."""

import pytest
import torch

from alignment.objectives.ensembles import (
    bootstrap_counts,
    ensemble_disagreement,
    pessimistic_scores,
)


def test_each_head_draws_as_many_prompts_as_there_are_and_the_seed_decides_which() -> None:
    counts = bootstrap_counts(200, 3, seed=5)
    assert counts.shape == (200, 3)
    assert counts.sum(0).tolist() == [200, 200, 200]
    assert torch.equal(counts, bootstrap_counts(200, 3, seed=5))
    assert not torch.equal(counts, bootstrap_counts(200, 3, seed=6))
    assert not torch.equal(counts[:, 0], counts[:, 1])
    # a prompt is left out with probability (1 - 1/200)^200 = 0.367; sd of the share about 0.022
    assert float((counts == 0).float().mean()) == pytest.approx(0.367, abs=0.06)


def test_score_is_mean_minus_deviations_by_hand() -> None:
    heads = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
    # deviations over 3 - 1: sqrt((1 + 0 + 1) / 2) = 1, and 0
    assert torch.equal(ensemble_disagreement(heads), torch.tensor([1.0, 0.0]))
    assert torch.equal(pessimistic_scores(heads, penalty=0.5), torch.tensor([1.5, 5.0]))
    assert torch.equal(pessimistic_scores(heads, penalty=0.0), torch.tensor([2.0, 5.0]))
