"""Old log-probabilities of the sampler: the policy is not asked, and the update shows the gap."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from toy_roles import ListSink, toy_config, toy_prompts, toy_roles

from alignment.checkpoints import Checkpoints, RolloutJournal
from alignment.errors import NumericsError
from alignment.experience import Rollout
from alignment.metrics import check_names
from alignment.training.ppo import train_ppo
from alignment.training.roles import Generator, Policy, PPORoles

Record = dict[str, float]


class Unasked:
    """The policy itself, but nobody may ask it for log-probabilities."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def __getattr__(self, name: str) -> Any:
        assert name != "logprobs", "the sampler has said them"
        return getattr(self._policy, name)


class Off:
    """The generator itself, but what it says of its tokens is off by so many nats each."""

    def __init__(self, generator: Generator, nats: float) -> None:
        self._generator = generator
        self._nats = nats

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    def generate(self, *arguments: Any, **named: Any) -> Rollout:
        rollout = self._generator.generate(*arguments, **named)
        moved = rollout.sampling_logprobs + self._nats * rollout.response_mask
        return replace(rollout, sampling_logprobs=moved)


@pytest.fixture
def roles(tiny_model: Path) -> PPORoles:
    return toy_roles(tiny_model, toy_config())


@pytest.fixture
def one_step(roles: PPORoles, tmp_path: Path) -> Callable[..., Record]:
    def train(nats: float, **settings: object) -> Record:
        sink = ListSink()
        train_ppo(
            toy_config(**{"steps": 1, "old_logprobs": "sampler"} | settings),
            replace(
                roles,
                policy=cast(Policy, Unasked(roles.policy)),
                generator=cast(Generator, Off(roles.generator, nats)),
            ),
            toy_prompts(),
            seed=0,
            checkpoints=Checkpoints(tmp_path / "checkpoints", stage_version=1),
            journal=RolloutJournal(tmp_path / "journal"),
            metrics=sink,
        )
        return sink.records[0]

    return train


@pytest.mark.parametrize("nats", [0.0, 0.125])
def test_the_gap_is_what_the_first_minibatch_sees(
    one_step: Callable[..., Record], nats: float
) -> None:
    record = one_step(nats)
    assert record["ppo/sampler_gap_max"] == pytest.approx(nats, abs=1e-5)
    assert record["ppo/sampler_gap_mean"] == pytest.approx(nats, abs=1e-5)
    kl = math.exp(-nats) - 1 + nats
    assert record["ppo/sampler_gap_kl_nats"] == pytest.approx(kl, abs=1e-5)
    assert record["ppo/first_ratio_max_deviation"] == pytest.approx(1 - math.exp(-nats), abs=1e-5)
    assert "time/old_logprobs_s" not in record
    check_names(set(record) - {"step"})


def test_the_kl_of_rewards_is_the_samplers(one_step: Callable[..., Record]) -> None:
    record = one_step(0.125)  # of a policy that is the reference itself
    assert record["ppo/kl_nats"] == pytest.approx(0.125 * record["ppo/response_tokens_mean"])


def test_the_alarm_comes_before_the_first_update(
    one_step: Callable[..., Record], roles: PPORoles
) -> None:
    before = {name: weight.clone() for name, weight in roles.policy.weights().items()}
    with pytest.raises(
        NumericsError, match=r"largest 1\.25e-01\) at step 0, over `ppo\.sampler_gap"
    ):
        one_step(0.125, sampler_gap_limit_nats=0.12)
    assert all(torch.equal(w, before[name]) for name, w in roles.policy.weights().items())


def test_a_gap_within_the_limit_is_no_alarm(one_step: Callable[..., Record]) -> None:
    assert one_step(0.125, sampler_gap_limit_nats=0.13)["ppo/updates"] == 2


def test_no_gap_is_said_where_the_policy_rests(one_step: Callable[..., Record]) -> None:
    record = one_step(0.125, steps=2, critic_warmup_steps=1)
    assert not {name for name in record if "sampler_gap" in name}
