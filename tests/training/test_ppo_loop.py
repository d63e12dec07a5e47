"""The PPO loop itself, with in-process roles on the tiny model."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from toy_roles import ListSink, toy_config, toy_prompts, toy_roles

from alignment.checkpoints import Checkpoints, RolloutJournal
from alignment.config import OptimizerConfig, PPOConfig
from alignment.errors import CheckpointError, NumericsError
from alignment.experience import TokenBatch
from alignment.metrics import check_names
from alignment.training.ppo import prompts_of_step, train_ppo
from alignment.training.roles import Loss, Policy, PPORoles


def run(
    config: PPOConfig, roles: PPORoles, folder: Path, *, seed: int = 0
) -> list[dict[str, float]]:
    sink = ListSink()
    train_ppo(
        config,
        roles,
        toy_prompts(max(8, config.prompts_per_step)),
        seed=seed,
        checkpoints=Checkpoints(folder / "checkpoints", stage_version=1),
        journal=RolloutJournal(folder / "journal"),
        metrics=sink,
    )
    return sink.records


def weights(roles: PPORoles) -> torch.Tensor:
    return torch.cat([w.flatten() for w in roles.policy.weights().values()])


def test_policy_learns_what_the_scorer_rewards(tiny_model: Path, tmp_path: Path) -> None:
    rate = OptimizerConfig(learning_rate=1e-2, final_learning_rate_fraction=1.0)
    fast = {"optimizer": rate, "critic_optimizer": rate}
    config = toy_config(
        steps=7, kl_budget_nats=100.0, responses_per_prompt=2, sequences_per_minibatch=8, **fast
    )
    records = run(config, toy_roles(tiny_model, config), tmp_path)
    first = sum(r["ppo/score_mean"] for r in records[:2]) / 2
    last = sum(r["ppo/score_mean"] for r in records[-2:]) / 2
    assert last > first + 0.1


def test_first_update_starts_at_ratio_one_and_kl_zero(tiny_model: Path, tmp_path: Path) -> None:
    config = toy_config(steps=1)
    (record,) = run(config, toy_roles(tiny_model, config), tmp_path)
    assert record["ppo/first_ratio_max_deviation"] == 0.0
    assert abs(record["ppo/kl_nats"]) < 1e-5
    assert record["ppo/sampler_gap_max"] < 1e-5
    check_names(set(record) - {"step"})


def test_throughput_is_tokens_over_the_time_of_their_phase(
    tiny_model: Path, tmp_path: Path
) -> None:
    config = toy_config(steps=1, epochs=2)
    (record,) = run(config, toy_roles(tiny_model, config), tmp_path)
    rollout = RolloutJournal(tmp_path / "journal").replay(0)
    assert rollout is not None
    sampled, read = int(rollout.response_mask.sum()), int(rollout.attention_mask.sum())
    readers = ("score", "old_logprobs", "reference_logprobs", "values")
    updates = {"update_policy": 2 * read, "update_critic": 2 * read}
    for phase, tokens in {"generate": sampled, **dict.fromkeys(readers, read), **updates}.items():
        said = record[f"ppo/{phase}_tokens_per_s"] * record[f"time/{phase}_s"]
        assert said == pytest.approx(tokens, rel=1e-6), phase


def test_each_step_is_sampled_by_the_version_before_it(tiny_model: Path, tmp_path: Path) -> None:
    config = toy_config()
    records = run(config, toy_roles(tiny_model, config), tmp_path)
    assert [r["ppo/policy_version"] for r in records] == [0, 1, 2]


def test_microbatch_size_does_not_change_the_weights(tiny_model: Path, tmp_path: Path) -> None:
    trained = []
    for tokens in (16, 4096):
        config = toy_config(steps=2, tokens_per_microbatch=tokens)
        roles = toy_roles(tiny_model, config)
        run(config, roles, tmp_path / str(tokens))
        trained.append(weights(roles))
    torch.testing.assert_close(trained[0], trained[1], atol=2e-5, rtol=0)


def test_resumed_run_ends_with_the_weights_of_an_unbroken_one(
    tiny_model: Path, tmp_path: Path
) -> None:
    config = toy_config(steps=4, checkpoint_every_steps=1)
    unbroken = toy_roles(tiny_model, config)
    run(config, unbroken, tmp_path / "unbroken")

    interrupted = toy_roles(tiny_model, config)
    weights_of_step = interrupted.policy.weights

    class KilledError(Exception):
        pass

    calls = 0

    def die_on_third_publication() -> object:
        nonlocal calls
        calls += 1
        if calls == 4:  # once at the start, then once a step: step 3 was updated, not saved
            raise KilledError
        return weights_of_step()

    interrupted.policy.weights = die_on_third_publication  # type: ignore[method-assign]
    with pytest.raises(KilledError):
        run(config, interrupted, tmp_path / "broken")

    resumed = toy_roles(tiny_model, config)
    records = run(config, resumed, tmp_path / "broken")
    assert [r["step"] for r in records] == [3, 4]
    assert torch.equal(weights(resumed), weights(unbroken))


def test_checkpoint_with_a_missing_part_is_refused_by_name(
    tiny_model: Path, tmp_path: Path
) -> None:
    config = toy_config(steps=1, checkpoint_every_steps=1)
    run(config, toy_roles(tiny_model, config), tmp_path)
    (tmp_path / "checkpoints" / "step-000001" / "critic" / "state.pt").unlink()
    with pytest.raises(CheckpointError, match=r"state\.pt"):
        run(config, toy_roles(tiny_model, config), tmp_path)


def test_checkpoint_of_another_stage_version_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    config = toy_config(steps=1, checkpoint_every_steps=1)
    run(config, toy_roles(tiny_model, config), tmp_path)
    with pytest.raises(CheckpointError, match="version 1 of its stage, this is version 2"):
        Checkpoints(tmp_path / "checkpoints", stage_version=2).restore(
            toy_roles(tiny_model, config)
        )


def test_nan_score_stops_before_the_update_and_names_the_sequence(
    tiny_model: Path, tmp_path: Path
) -> None:
    config = toy_config()
    roles = toy_roles(tiny_model, config)
    before = weights(roles)

    def broken(batch: object) -> torch.Tensor:
        scores = torch.zeros(8)
        scores[5] = float("nan")
        return scores

    roles.reward_model.scores = broken  # type: ignore[method-assign]
    with pytest.raises(NumericsError, match="reward-model score of sequence 5 at step 0"):
        run(config, roles, tmp_path)
    assert torch.equal(weights(roles), before)


def test_broken_kl_budget_stops_training(tiny_model: Path, tmp_path: Path) -> None:
    config = toy_config(steps=6, kl_budget_nats=1e-4)
    with pytest.raises(NumericsError, match=r"ppo\.kl_budget_nats"):
        run(config, toy_roles(tiny_model, config), tmp_path)


def test_prompts_are_all_visited_before_any_repeats() -> None:
    config = toy_config(prompts_per_step=4, responses_per_prompt=2, sequences_per_minibatch=8)
    prompts = toy_prompts(8)
    first = prompts_of_step(prompts, config, seed=3, step=0)
    second = prompts_of_step(prompts, config, seed=3, step=1)
    assert {p.id for p in first} | {p.id for p in second} == {p.id for p in prompts}
    assert [p.id for p in first[::2]] == [p.id for p in first[1::2]]
    assert first == prompts_of_step(prompts, config, seed=3, step=0)
    assert first != prompts_of_step(prompts, config, seed=4, step=0)


def test_old_logprobs_are_asked_for_in_the_minibatches_of_the_first_epoch(
    tiny_model: Path, tmp_path: Path
) -> None:
    config = toy_config(steps=1, epochs=2, prompts_per_step=12, sequences_per_minibatch=4)
    roles = toy_roles(tiny_model, config)
    asked: list[list[list[int]]] = []
    updated: list[list[list[int]]] = []
    told: list[bool] = []

    class Recording:
        """The policy itself, writing down which rows it was given."""

        def __getattr__(self, name: str) -> object:
            return getattr(roles.policy, name)

        def logprobs(self, batch: TokenBatch, *, trained_next: bool = False) -> torch.Tensor:
            asked.append(batch.token_ids.tolist())
            told.append(trained_next)
            return roles.policy.logprobs(batch, trained_next=trained_next)

        def forward_backward(
            self, batch: TokenBatch, loss: Loss, *, denominator: float
        ) -> dict[str, float]:
            updated.append(batch.token_ids.tolist())
            return roles.policy.forward_backward(batch, loss, denominator=denominator)

    run(config, replace(roles, policy=cast(Policy, Recording())), tmp_path)
    assert len(asked) == 3
    assert asked == [*updated[1:3], updated[0]] != [*updated[4:], updated[3]]
    assert told == [False, False, True], "only the first minibatch's pass is worth keeping"
