"""A reward-model ensemble: heads on one trunk, each with its own draw of the prompts."""

from functools import partial
from pathlib import Path

import pytest
import torch
from test_sft_and_reward_model import comparisons
from toy_roles import ListSink

from alignment.config import OptimizerConfig, RewardModelConfig
from alignment.models.modules import mean_head, saved_heads, write_normalisation
from alignment.objectives.ensembles import bootstrap_counts
from alignment.objectives.preference_losses import preference_group_loss
from alignment.role_specs import FrozenSpec, TrainableSpec
from alignment.roles_local import LocalTrainable, start_roles
from alignment.training.reward_model import (
    ensemble_loss,
    reward_model_objective,
    train_reward_model,
)
from alignment.training.roles import ValueOutputs

HEADS = 3
STEADY = OptimizerConfig(learning_rate=3e-3, epsilon=1e-2)


def ensemble(folder: Path, config: RewardModelConfig) -> LocalTrainable:
    spec = TrainableSpec(
        name="reward_model",
        kind="value",
        model_folder=folder,
        optimizer=config.optimizer,
        training=config,
        total_steps=40,
        seed=0,
        heads=config.heads,
    )
    role: LocalTrainable = start_roles([spec])["reward_model"]
    return role


def test_loss_is_the_mean_over_heads_of_each_ones_own_draw() -> None:
    batch = comparisons()
    torch.manual_seed(0)
    scores = torch.randn(18, HEADS, requires_grad=True)
    draws = bootstrap_counts(6, HEADS, seed=3)
    outputs = ValueOutputs(new_values=torch.zeros(batch.token_ids.shape), scores=scores)
    sums = ensemble_loss(outputs, batch, draws=draws)

    expected = 0.0
    for head in range(HEADS):
        for group in range(6):  # a group drawn twice counts as if it were there twice
            rows = (batch.group == group).nonzero().flatten()
            alone = preference_group_loss(
                scores[rows, head],
                group=batch.group[rows],
                member=batch.member[rows],
                preference=batch.preference[rows],
                pair_weight=batch.pair_weight[rows],
            )
            expected += int(draws[group, head]) * float(alone.loss.detach()) / HEADS
    assert float(sums.loss.detach()) == pytest.approx(expected, rel=1e-6)

    sums.loss.backward()
    assert scores.grad is not None
    undrawn = draws[batch.group] == 0
    assert undrawn.any()
    assert bool((scores.grad[undrawn] == 0).all())
    assert bool((scores.grad[~undrawn] != 0).any())


def test_heads_differ_learn_and_are_kept_or_merged_on_loading(
    tiny_model: Path, tmp_path: Path
) -> None:
    config = RewardModelConfig(epochs=12, groups_per_minibatch=3, heads=HEADS, optimizer=STEADY)
    role, sink, batch = ensemble(tiny_model, config), ListSink(), comparisons()
    train_reward_model(config, role, batch, seed=0, metrics=sink)
    raw = role.scores(batch)
    assert raw.shape == (18, HEADS)
    assert not torch.allclose(raw[:, 0] - raw[:, 0].mean(), raw[:, 1] - raw[:, 1].mean(), atol=1e-3)
    assert sink.records[-1]["reward_model/accuracy"] > 0.9

    role.export(tmp_path)
    means, scales = raw.mean(0).tolist(), (1 / raw.std(0)).tolist()
    write_normalisation(tmp_path, mean=means, scale=scales)
    assert saved_heads(tmp_path) == HEADS
    specs = [
        FrozenSpec(name="kept", kind="value", model_folder=tmp_path, keeps_heads=True),
        FrozenSpec(name="merged", kind="value", model_folder=tmp_path),
    ]
    roles = start_roles(specs)
    kept, merged = roles["kept"].scores(batch), roles["merged"].scores(batch)
    torch.testing.assert_close(kept, (raw - raw.mean(0)) / raw.std(0), atol=1e-4, rtol=0)
    assert merged.shape == (18,)  # also what a critic starts from
    torch.testing.assert_close(merged, kept.mean(1), atol=1e-5, rtol=0)


def test_the_draws_follow_the_seed() -> None:
    config = RewardModelConfig(heads=2)

    def draws(seed: int) -> torch.Tensor:
        objective = reward_model_objective(config, num_groups=20, seed=seed)
        assert isinstance(objective, partial)
        return torch.as_tensor(objective.keywords["draws"])

    assert torch.equal(draws(0), draws(0))
    assert not torch.equal(draws(0), draws(1))


def test_merged_head_is_the_mean_of_normalised_outputs(tmp_path: Path) -> None:
    head = torch.nn.Linear(4, 2)
    merged = mean_head(head, [1.0, -2.0], [2.0, 0.5])
    hidden = torch.randn(5, 4)
    expected = ((head(hidden) - torch.tensor([1.0, -2.0])) * torch.tensor([2.0, 0.5])).mean(1)
    torch.testing.assert_close(merged(hidden).squeeze(1), expected)
    assert saved_heads(tmp_path) == 0
