"""Two DeepSpeed ranks with unequal shares have one process's gradient."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from role_factory import (
    RevealingActor,
    negative_logprob,
    not_a_number,
    random_batch,
    start_group,
    trainable_spec,
)

from alignment.cluster.lent_weights import Borrower
from alignment.cluster.roles import RemotePolicy
from alignment.cluster.session import Cluster
from alignment.cluster.shards import shard_batch
from alignment.cluster.weights import read_bucket
from alignment.config import LoRAConfig
from alignment.errors import NumericsError
from alignment.models.loading import load_trainable_module
from alignment.models.passes import microbatches
from alignment.objectives.logprobs import chunk_count
from alignment.role_specs import TrainableSpec
from alignment.roles_local import LocalTrainable

pytestmark = pytest.mark.engines


LORA = {"lora": LoRAConfig(r=4)}
CHECKPOINTING = {"gradient_checkpointing": True}
CHUNK_TOKENS = 8
"""So that ranks project to the vocabulary unequally often, each time a collective under ZeRO 3."""


@pytest.mark.parametrize(
    ("zero_stage", "training"),
    [
        (0, {}),
        (1, CHECKPOINTING),
        (2, {}),
        (3, CHECKPOINTING),
        (0, LORA | CHECKPOINTING),
        (2, LORA),
    ],
)
def test_two_unequal_ranks_have_the_gradient_of_one_process(
    cluster: Cluster, tiny_model: Path, zero_stage: Literal[0, 1, 2, 3], training: dict[str, Any]
) -> None:
    spec = trainable_spec("policy", tiny_model, ranks=2, zero_stage=zero_stage, **training)
    batch = random_batch(5, seed=10, longest=60)
    shares = [shard.batch for shard in shard_batch(batch, 2)]
    module = load_trainable_module(spec)
    assert len({len(microbatches(module, share, tokens=64)) for share in shares}) == 2
    tokens = {int(share.response_mask.sum()) for share in shares}
    assert len({chunk_count(count, CHUNK_TOKENS) for count in tokens}) == 2

    group = start_group(cluster, RevealingActor, spec, cluster.config)
    try:
        group.call("project_at_most", CHUNK_TOKENS)
        _compare_with_one_process(RemotePolicy(group), spec, batch)
        _a_step_with_nan_changes_nothing(RemotePolicy(group), batch)
    finally:
        group.end("the test is over")


def _compare_with_one_process(policy: RemotePolicy, spec: TrainableSpec, batch: Any) -> None:
    local = LocalTrainable(load_trainable_module(spec), spec)
    tokens = float(batch.response_mask.sum())
    expected = local.forward_backward(batch, negative_logprob, denominator=tokens)
    named = local.module.named_parameters()
    gradients = {n: p.grad.clone() for n, p in named if p.requires_grad}

    policy.logprobs(batch, trained_next=True)
    kept = policy.group.call("keeps_a_pass")
    assert kept == [spec.training.zero_stage < 3] * spec.resources.ranks
    sums = policy.forward_backward(batch, negative_logprob, denominator=tokens)
    assert not any(policy.group.call("keeps_a_pass"))
    assert sums["tokens"] == tokens
    assert sums["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    report, expected_report = policy.step(), local.step()
    assert report.gradient_norm == pytest.approx(expected_report.gradient_norm, rel=1e-5)
    assert report.learning_rate == pytest.approx(expected_report.learning_rate)
    for revealed in policy.group.call("gradients"):
        assert revealed.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(revealed[name], gradient, atol=1e-6, rtol=1e-5)

    # Two calls before a step add up, and one row leaves the second rank without work.
    for share in shard_batch(batch, 2):
        policy.forward_backward(share.batch, negative_logprob, denominator=tokens)
        local.forward_backward(share.batch, negative_logprob, denominator=tokens)
    one_row = shard_batch(batch, 5)[0].batch
    policy.forward_backward(one_row, negative_logprob, denominator=tokens)
    local.forward_backward(one_row, negative_logprob, denominator=tokens)
    assert policy.step().gradient_norm == pytest.approx(local.step().gradient_norm, rel=1e-5)
    torch.testing.assert_close(policy.logprobs(batch), local.logprobs(batch), atol=1e-4, rtol=0)
    _compare_published(policy, local.module)
    _only_whole_plain_weights_are_lent(policy, spec, local.module)


def _compare_published(policy: RemotePolicy, local: Any) -> None:
    """Every rank takes part in copying and probing; the first one has whole, merged weights."""
    expected = {weight.name: weight.value() for weight in local.published_weights()}
    arrived: dict[str, torch.Tensor] = {}
    for number in range(policy.group.call("count_buckets")[0]):
        bucket, others = policy.group.call("copy_bucket", number)
        assert others is None
        arrived |= read_bucket(bucket)
    assert arrived.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(arrived[name], weight.detach(), atol=1e-4, rtol=0)
    assert len(policy.group.call("probe")[0].logprobs) == 15


def _only_whole_plain_weights_are_lent(
    policy: RemotePolicy, spec: TrainableSpec, local: Any
) -> None:
    lent, others = policy.group.call("lent_weights")
    assert others is None
    assert (lent is not None) == (spec.training.zero_stage == 0 and spec.training.lora is None)
    if lent is not None:
        for name, weight in Borrower().read(lent):
            torch.testing.assert_close(weight, dict(local.named_weights())[name], atol=1e-4, rtol=0)


def _a_step_with_nan_changes_nothing(policy: RemotePolicy, batch: Any) -> None:
    before = policy.logprobs(batch)
    policy.forward_backward(batch, not_a_number, denominator=1.0)
    with pytest.raises(NumericsError, match=r"policy: the gradient norm is (nan|inf)"):
        policy.step()
    assert torch.equal(policy.logprobs(batch), before)
