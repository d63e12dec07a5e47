"""Two ranks that may not use the driver's disk: what they read and write travels by S3.

They run on this machine; that hosts can be apart in truth is shown in
tests/flows/test_hosts_in_namespaces.py.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import fs
from role_factory import negative_logprob, random_batch, trainable_spec
from s3_server import point_to, s3_environment, s3_server

from alignment.cluster import session
from alignment.cluster.placement import NodeCapacity
from alignment.cluster.session import Cluster
from alignment.models.loading import load_language_model

pytestmark = [pytest.mark.engines, pytest.mark.slow]

URL = "s3://bucket/store"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[fs.FileSystem]:
    """An empty bucket that this process and the actors find by their environment."""
    actor_environment = session.actor_environment

    def with_s3(*arguments: Any, **named: Any) -> dict[str, str]:
        return actor_environment(*arguments, **named) | s3_environment(address)

    with s3_server() as address:
        point_to(monkeypatch, address)
        # Ray on these machines began before the server did.
        monkeypatch.setattr(session, "actor_environment", with_s3)
        files = fs.S3FileSystem(
            endpoint_override=address, scheme="http", region="us-east-1", allow_bucket_creation=True
        )
        files.create_dir("bucket")
        yield files


def passing(bucket: fs.FileSystem) -> list[str]:
    found = bucket.get_file_info(fs.FileSelector("bucket/store", recursive=True))
    return [f.path for f in found if f.is_file and "/passing/" in f.path]


@pytest.fixture
def far(cluster: Cluster, bucket: fs.FileSystem, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The tests' cluster, taken for one of two machines without a shared store."""
    monkeypatch.setattr(session, "cluster_nodes", lambda: [NodeCapacity(gpus=8, cpus=2)] * 2)
    return Cluster(cluster.config, logs=cluster.logs, shared_store=URL)


def train(policy: Any) -> torch.Tensor:
    """One step, and what the weights then make of the batch."""
    batch = random_batch(6, seed=0)
    tokens = float(batch.response_mask.sum())
    policy.forward_backward(batch, negative_logprob, denominator=tokens)
    policy.step()
    return torch.as_tensor(policy.logprobs(batch))


def test_one_rank_saves_and_two_go_on(
    far: Cluster, bucket: fs.FileSystem, tiny_model: Path, tmp_path: Path
) -> None:
    first, second, exported = tmp_path / "first", tmp_path / "second", tmp_path / "exported"
    one = far.start_roles([trainable_spec("policy", tiny_model, zero_stage=2)])["policy"]
    try:
        train(one)
        one.save_checkpoint(first)
        expected = train(one)
    finally:
        far.stop_roles(["policy"])

    two = far.start_roles([trainable_spec("policy", tiny_model, ranks=2, zero_stage=2)])["policy"]
    try:
        two.load_checkpoint(first)  # each rank cuts a copy of its own
        went_on = train(two)
        torch.testing.assert_close(went_on, expected, atol=1e-4, rtol=1e-4)
        two.save_checkpoint(second)
        two.export(exported)
        after = train(two)
        two.load_checkpoint(second)
        assert torch.equal(train(two), after), "the same ranks go on to the bit"
    finally:
        far.stop_roles(["policy"])

    files = json.loads((second / "contents.json").read_text())["files"]
    for rank in (0, 1):
        assert f"random_states_rank{rank}.pt" in files
        assert [name for name in files if f"zero_pp_rank_{rank}_" in name]
    batch = random_batch(6, seed=0)
    outputs = load_language_model(exported)(batch.token_ids, batch.response_mask)
    said = outputs.new_logprobs * batch.response_mask
    torch.testing.assert_close(said.detach(), went_on, atol=1e-4, rtol=1e-4)
    assert passing(bucket) == []
