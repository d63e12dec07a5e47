"""The SFT and reward-model loops, in process on the tiny model."""

from pathlib import Path

import pytest
import torch
from toy_roles import ListSink

from alignment.config import OptimizerConfig, RewardModelConfig, SFTConfig
from alignment.errors import NumericsError
from alignment.experience import PreferenceBatch, TokenBatch, batch_from_rows
from alignment.metrics import check_names
from alignment.models.optimizer import learning_rate_factor
from alignment.role_specs import TrainableSpec
from alignment.roles_local import LocalTrainable, start_roles
from alignment.training.reward_model import num_reward_model_steps, train_reward_model
from alignment.training.sft import num_sft_steps, train_sft

RATE = OptimizerConfig(learning_rate=3e-3)
# Adam blows rounding noise up to whole steps where a gradient is zero: a large epsilon does not.
STEADY = OptimizerConfig(learning_rate=3e-3, epsilon=1e-2)


def trainable(folder: Path, kind: str, config: SFTConfig | RewardModelConfig) -> LocalTrainable:
    torch.manual_seed(0)
    spec = TrainableSpec(
        name="trained",
        kind=kind,  # type: ignore[arg-type]
        model_folder=folder,
        optimizer=config.optimizer,
        training=config,
        total_steps=40,
        seed=0,
    )
    role: LocalTrainable = start_roles([spec])["trained"]
    return role


def demonstrations() -> TokenBatch:
    prompts = [[1, 5 + i] for i in range(8)]
    responses = [[20, 21, 22, 2][: 2 + i % 3] for i in range(8)]
    return batch_from_rows(prompts, responses)


def comparisons() -> PreferenceBatch:
    """Groups of three; a response with more tokens above 100 is better."""
    prompts, responses, rows = [], [], []
    for group in range(6):
        for member in range(3):
            prompts.append([1, 5 + group])
            responses.append([150] * member + [30] * (3 - member))
            rows.append((group, member))
    batch = batch_from_rows(prompts, responses)
    preference = torch.full((18, 3), 0.5)
    weight = torch.zeros(18, 3)
    for row, (_, member) in enumerate(rows):
        for other in range(3):
            preference[row, other] = 0.5 + 0.5 * ((member > other) - (member < other))
            weight[row, other] = float(member < other)
    group_of, member_of = torch.tensor(rows).T
    return PreferenceBatch(
        token_ids=batch.token_ids,
        attention_mask=batch.attention_mask,
        response_mask=batch.response_mask,
        group=group_of,
        member=member_of,
        preference=preference,
        pair_weight=weight,
    )


def weights(role: LocalTrainable) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in role.module.parameters()])


def test_sft_learns_the_demonstrations(tiny_model: Path) -> None:
    config = SFTConfig(epochs=10, sequences_per_minibatch=4, optimizer=RATE)
    sink = ListSink()
    train_sft(
        config, trainable(tiny_model, "language", config), demonstrations(), seed=0, metrics=sink
    )
    assert len(sink.records) == num_sft_steps(config, 8) == 20
    assert sink.records[-1]["sft/loss"] < 0.5 * sink.records[0]["sft/loss"]
    check_names(set(sink.records[0]) - {"step"})


def test_sft_loss_is_the_mean_over_the_minibatch_not_over_microbatches(tiny_model: Path) -> None:
    trained, losses = [], []
    for tokens in (6, 4096):
        config = SFTConfig(
            epochs=1, sequences_per_minibatch=8, optimizer=STEADY, tokens_per_microbatch=tokens
        )
        role, sink = trainable(tiny_model, "language", config), ListSink()
        train_sft(config, role, demonstrations(), seed=0, metrics=sink)
        trained.append(weights(role))
        losses.append(sink.records[0]["sft/loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    torch.testing.assert_close(trained[0], trained[1], atol=1e-5, rtol=0)


def test_prompt_tokens_have_no_part_in_the_sft_loss(tiny_model: Path) -> None:
    config = SFTConfig(epochs=1, sequences_per_minibatch=8, optimizer=RATE)
    role = trainable(tiny_model, "language", config)
    batch = demonstrations()
    logprobs = role.logprobs(batch)[batch.response_mask]
    sink = ListSink()
    train_sft(config, role, batch, seed=0, metrics=sink)
    assert sink.records[0]["sft/loss"] == pytest.approx(-float(logprobs.mean()), abs=1e-5)


def test_reward_model_learns_the_order(tiny_model: Path) -> None:
    config = RewardModelConfig(epochs=10, groups_per_minibatch=3, optimizer=RATE)
    role, sink = trainable(tiny_model, "value", config), ListSink()
    batch = comparisons()
    train_reward_model(config, role, batch, seed=0, metrics=sink)
    assert len(sink.records) == num_reward_model_steps(config, 6) == 20
    assert sink.records[-1]["reward_model/accuracy"] == 1.0
    scores = role.scores(batch).view(6, 3)
    assert (scores.diff(dim=1) > 0).all()
    check_names(set(sink.records[0]) - {"step"})


def test_reward_model_keeps_groups_whole_in_any_microbatch(tiny_model: Path) -> None:
    trained = []
    for tokens in (1, 4096):
        config = RewardModelConfig(
            epochs=1, groups_per_minibatch=6, optimizer=STEADY, tokens_per_microbatch=tokens
        )
        role = trainable(tiny_model, "value", config)
        train_reward_model(config, role, comparisons(), seed=0, metrics=ListSink())
        trained.append(weights(role))
    torch.testing.assert_close(trained[0], trained[1], atol=1e-5, rtol=0)


def test_loss_that_is_not_finite_stops_before_the_weights_move(tiny_model: Path) -> None:
    config = SFTConfig(optimizer=RATE)
    role = trainable(tiny_model, "language", config)
    with torch.no_grad():
        role.module.causal_lm.model.norm.weight[0] = float("inf")
    before = weights(role).clone()
    with pytest.raises(NumericsError, match="SFT loss is nan at step 0"):
        train_sft(config, role, demonstrations(), seed=0, metrics=ListSink())
    assert torch.equal(weights(role), before)


def test_learning_rate_warms_up_then_decays_to_its_final_fraction() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=3, final_learning_rate_fraction=0.2)
    factor = learning_rate_factor(config, 13)
    assert [factor(step) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert factor(8) == pytest.approx(0.6)
    assert factor(13) == pytest.approx(0.2)
    assert factor(50) == pytest.approx(0.2)
