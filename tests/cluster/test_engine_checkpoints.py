"""A checkpoint continues bit for bit in another process, or is refused by name."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from role_factory import (
    RevealingActor,
    negative_logprob,
    random_batch,
    start_group,
    trainable_spec,
)
from safetensors.torch import load_file

from alignment.cluster.groups import ActorGroup
from alignment.cluster.roles import RemotePolicy
from alignment.cluster.session import Cluster
from alignment.config import LoRAConfig
from alignment.errors import CheckpointError
from alignment.role_specs import FrozenSpec
from alignment.roles_local import start_roles as start_local_roles

pytestmark = pytest.mark.engines


def train(policy: RemotePolicy, steps: range) -> list[tuple[float, float]]:
    record = []
    for step in steps:
        batch = random_batch(6, seed=step)
        tokens = float(batch.response_mask.sum())
        loss = policy.forward_backward(batch, negative_logprob, denominator=tokens)["loss"]
        record.append((loss, policy.step().learning_rate))
    return record


def numbers_drawn(group: ActorGroup) -> list[Any]:
    return group.call("draw_random_numbers")


def exported(policy: RemotePolicy, folder: Path, *, averaged: bool) -> dict[str, torch.Tensor]:
    """The exported weights, which are the policy's own unless their average is kept."""
    policy.export(folder)
    batch = random_batch(5, seed=10)
    spec = FrozenSpec(name="exported", kind="language", model_folder=folder)
    gap = (start_local_roles([spec])["exported"].logprobs(batch) - policy.logprobs(batch)).abs()
    assert (float(gap.max()) > 1e-3) == averaged
    return load_file(folder / "model.safetensors")


LORA = LoRAConfig(r=4, dropout=0.2)


@pytest.mark.parametrize(
    ("zero_stage", "ranks", "lora"),
    [
        (0, 1, None),
        (2, 2, None),
        (0, 1, LORA),
        pytest.param(3, 2, LORA, marks=pytest.mark.slow),
    ],
)
def test_a_fresh_process_continues_bit_for_bit(
    cluster: Cluster,
    tiny_model: Path,
    tmp_path: Path,
    zero_stage: Literal[0, 2, 3],
    ranks: int,
    lora: LoRAConfig | None,
) -> None:
    ema_decay = 0.9 if zero_stage == 2 else None
    spec = trainable_spec(
        "policy", tiny_model, zero_stage=zero_stage, ranks=ranks, lora=lora, ema_decay=ema_decay
    )
    first = start_group(cluster, RevealingActor, spec, cluster.config)
    try:
        policy = RemotePolicy(first)
        train(policy, range(0, 2))
        policy.save_checkpoint(tmp_path / "checkpoint")
        expected_numbers = numbers_drawn(first)
        expected = train(policy, range(2, 4))
        expected_digest = first.call("weight_digest")
        expected_export = exported(policy, tmp_path / "first", averaged=ema_decay is not None)
        assert first.call("weight_digest") == expected_digest, "exporting leaves weights alone"
    finally:
        first.end("the test is over")

    second = start_group(cluster, RevealingActor, spec, cluster.config)
    try:
        policy = RemotePolicy(second)
        _refusals(policy, tmp_path / "checkpoint")
        _frozen_weights_are_not_written_again(tmp_path / "checkpoint", frozen=lora is not None)
        assert second.call("weight_digest") != expected_digest
        policy.load_checkpoint(tmp_path / "checkpoint")
        assert numbers_drawn(second) == expected_numbers
        assert train(policy, range(2, 4)) == expected
        assert second.call("weight_digest") == expected_digest
        assert second.call("describe")[0]["steps"] == 4
        again = exported(policy, tmp_path / "second", averaged=ema_decay is not None)
        assert all(torch.equal(again[name], weight) for name, weight in expected_export.items())
    finally:
        second.end("the test is over")


def _refusals(policy: RemotePolicy, checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no contents\.json: it was never finished"):
        policy.load_checkpoint(checkpoint / "nowhere")

    states = checkpoint / "random_states_rank0.pt"
    kept = states.read_bytes()
    states.unlink()
    with pytest.raises(CheckpointError, match=r"random_states_rank0\.pt is missing"):
        policy.load_checkpoint(checkpoint)
    states.write_bytes(kept[:-1])
    with pytest.raises(CheckpointError, match=r"has \d+ bytes instead of \d+"):
        policy.load_checkpoint(checkpoint)
    states.write_bytes(kept)

    contents = checkpoint / "contents.json"
    written = contents.read_text()
    contents.write_text(json.dumps(json.loads(written) | {"zero_stage": 1}))
    with pytest.raises(CheckpointError, match=r"written with zero_stage 1, this role has \d"):
        policy.load_checkpoint(checkpoint)
    contents.write_text(json.dumps(json.loads(written) | {"base_digest": "0123456789abcdef"}))
    with pytest.raises(CheckpointError, match=r"rests on frozen weights sha256:0123456789ab, this"):
        policy.load_checkpoint(checkpoint)
    contents.write_text(written)


def _frozen_weights_are_not_written_again(checkpoint: Path, *, frozen: bool) -> None:
    file = next((checkpoint / "engine").glob("*mp_rank_00_model_states.pt"))
    state = torch.load(file, weights_only=False)
    for name in ("model.norm.weight", "lm_head.weight"):
        assert (f"module.causal_lm.{name}" in state["module"]) != frozen
