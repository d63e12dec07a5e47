"""Sampling one step ahead, through the PPO loop with in-process roles."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_roles import ListSink, toy_config, toy_prompts, toy_roles

from alignment.checkpoints import Checkpoints, RolloutJournal
from alignment.config import OptimizerConfig, PPOConfig
from alignment.errors import DataError
from alignment.experience import Rollout, Sampling
from alignment.training.overlap import OneStepAhead
from alignment.training.ppo import train_ppo
from alignment.training.roles import PPORoles


def run(
    config: PPOConfig, roles: PPORoles, folder: Path, *, seed: int = 0
) -> list[dict[str, float]]:
    sink = ListSink()
    journal = RolloutJournal(folder / "journal")
    if config.overlap:
        ahead = OneStepAhead(roles.generator, journal, config, toy_prompts(), seed)  # type: ignore[arg-type]
        roles = replace(roles, generator=ahead)
    train_ppo(
        config,
        roles,
        toy_prompts(),
        seed=seed,
        checkpoints=Checkpoints(folder / "checkpoints", stage_version=1),
        journal=journal,
        metrics=sink,
    )
    return sink.records


def weights(roles: PPORoles) -> torch.Tensor:
    return torch.cat([w.flatten() for w in roles.policy.weights().values()])


def sampled(folder: Path, step: int) -> Rollout:
    rollout = RolloutJournal(folder / "journal").replay(step)
    assert rollout is not None
    return rollout


def test_rollouts_are_one_version_old_and_say_so(tiny_model: Path, tmp_path: Path) -> None:
    config = toy_config(steps=4, overlap=True)
    records = run(config, toy_roles(tiny_model, config), tmp_path)
    assert [record["ppo/policy_version"] for record in records] == [0, 0, 1, 2]
    assert records[0]["ppo/sampler_gap_max"] < 1e-5
    assert all(record["ppo/sampler_gap_max"] > 1e-3 for record in records[1:])
    # The trainer recomputes old log-probabilities, so each step still starts at a ratio of 1.
    assert all(record["ppo/first_ratio_max_deviation"] == 0.0 for record in records)


def test_without_an_update_it_samples_what_a_synchronous_run_does(
    tiny_model: Path, tmp_path: Path
) -> None:
    still = OptimizerConfig(learning_rate=0.0)
    for overlap in (False, True):
        config = toy_config(steps=3, overlap=overlap, optimizer=still, critic_optimizer=still)
        run(config, toy_roles(tiny_model, config), tmp_path / str(overlap))
    for step in range(3):
        synchronous, ahead = (sampled(tmp_path / str(overlap), step) for overlap in (False, True))
        assert torch.equal(ahead.token_ids, synchronous.token_ids)
        assert torch.equal(ahead.sampling_logprobs, synchronous.sampling_logprobs)


@pytest.mark.parametrize("killed_at", ["saved", "journal", "checkpoint"])
def test_a_killed_run_resumes_to_the_bit(tiny_model: Path, tmp_path: Path, killed_at: str) -> None:
    config = toy_config(steps=5, checkpoint_every_steps=2, overlap=True)
    unbroken = toy_roles(tiny_model, config)
    run(config, unbroken, tmp_path / "unbroken")

    class KilledError(Exception):
        pass

    with pytest.MonkeyPatch.context() as patch:
        owner, method, fatal_call = {
            "saved": (Checkpoints, "write", 1),  # the first one, done: step 3 has not begun
            "journal": (RolloutJournal, "keep", 4),  # rollout 3, as weights 3 are published
            "checkpoint": (Checkpoints, "write", 2),  # the second one
        }[killed_at]
        original, calls = getattr(owner, method), []

        def die(*arguments: object, **named: object) -> object:
            calls.append(1)
            if len(calls) == fatal_call and killed_at != "saved":
                raise KilledError
            answer = original(*arguments, **named)
            if len(calls) == fatal_call:
                raise KilledError
            return answer

        patch.setattr(owner, method, die)
        with pytest.raises(KilledError):
            run(config, toy_roles(tiny_model, config), tmp_path / "broken")

    resumed = toy_roles(tiny_model, config)
    records = run(config, resumed, tmp_path / "broken")
    assert [record["step"] for record in records] == [3, 4, 5]
    assert [record["ppo/policy_version"] for record in records] == [1, 2, 3]
    assert torch.equal(weights(resumed), weights(unbroken))


def test_another_request_than_the_one_begun_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    config = toy_config(overlap=True)
    roles = toy_roles(tiny_model, config)
    journal = RolloutJournal(tmp_path)
    ahead = OneStepAhead(roles.generator, journal, config, toy_prompts(), 0)  # type: ignore[arg-type]
    ahead.load_weights(roles.policy.weights(), version=0)
    with pytest.raises(DataError, match="the rollout of step 0 was begun, but another one is"):
        ahead.generate(toy_prompts(), Sampling(max_response_tokens=6), seeds=range(8))
