"""A checkpoint of some ranks goes on with another number of them, optimiser included."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from role_factory import (
    RevealingActor,
    negative_logprob,
    random_batch,
    start_group,
    trainable_spec,
)

from alignment.cluster.roles import RemotePolicy
from alignment.cluster.session import Cluster
from alignment.role_specs import TrainableSpec

pytestmark = pytest.mark.engines


def train(policy: RemotePolicy, steps: range) -> list[float]:
    rates = []
    for step in steps:
        batch = random_batch(6, seed=step)
        tokens = float(batch.response_mask.sum())
        policy.forward_backward(batch, negative_logprob, denominator=tokens)
        rates.append(policy.step().learning_rate)
    return rates


def decaying_spec(model: Path, zero_stage: Literal[0, 1, 2, 3], ranks: int) -> TrainableSpec:
    """With a weight decay, which norms are spared: two groups of parameters that differ."""
    spec = trainable_spec("policy", model, zero_stage=zero_stage, ranks=ranks)
    return replace(spec, optimizer=spec.optimizer.model_copy(update={"weight_decay": 2.0}))


@pytest.mark.parametrize(
    ("zero_stage", "before", "after"),
    [
        (2, 2, 1),
        pytest.param(0, 1, 2, marks=pytest.mark.slow),
        pytest.param(0, 2, 1, marks=pytest.mark.slow),
        pytest.param(1, 2, 1, marks=pytest.mark.slow),
        pytest.param(2, 1, 2, marks=pytest.mark.slow),
        pytest.param(3, 2, 1, marks=pytest.mark.slow),
        pytest.param(3, 1, 2, marks=pytest.mark.slow),
    ],
)
def test_weights_moments_and_schedule_go_on(
    cluster: Cluster,
    tiny_model: Path,
    tmp_path: Path,
    zero_stage: Literal[0, 1, 2, 3],
    before: int,
    after: int,
) -> None:
    """Two more steps end where the first ranks' own two steps end.

    Without the moments, AdamW's first step would move each weight by the learning rate, 1e-2.
    """
    probe = random_batch(4, seed=99)
    spec = decaying_spec(tiny_model, zero_stage, before)
    first = start_group(cluster, RevealingActor, spec, cluster.config)
    try:
        policy = RemotePolicy(first)
        train(policy, range(2))
        policy.save_checkpoint(tmp_path / "checkpoint")
        files = sorted(path for path in (tmp_path / "checkpoint").rglob("*"))
        saved = policy.logprobs(probe)
        expected_rates = train(policy, range(2, 4))
        expected = policy.logprobs(probe)
    finally:
        first.end("the test is over")
    assert float((expected - saved).abs().max()) > 1e-2, "the steps must be large enough to be seen"

    spec = decaying_spec(tiny_model, zero_stage, after)
    second = start_group(cluster, RevealingActor, spec, cluster.config)
    try:
        policy = RemotePolicy(second)
        policy.load_checkpoint(tmp_path / "checkpoint")
        torch.testing.assert_close(policy.logprobs(probe), saved, atol=1e-6, rtol=0)
        assert train(policy, range(2, 4)) == expected_rates
        torch.testing.assert_close(policy.logprobs(probe), expected, atol=2e-5, rtol=0)
        assert sorted((tmp_path / "checkpoint").rglob("*")) == files, "nothing is left beside it"
    finally:
        second.end("the test is over")
