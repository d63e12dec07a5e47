"""A PPO stage that is resumed: what its run refuses, records and keeps."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alignment.config import PipelineConfig, RunConfig
from alignment.errors import ConfigError
from flows.lineage import require_ancestor
from flows.manifest import Artifact, StageRequest
from flows.metrics_log import read_metrics
from flows.run_record import RunOptions, open_run, read_run
from flows.store import ArtifactStore


def made(store: ArtifactStore, stage: str, **inputs: Artifact) -> Artifact:
    references = {name: artifact.reference() for name, artifact in inputs.items()}
    request = StageRequest(stage=stage, stage_version=1, inputs=references)
    with store.open_stage(request) as workspace:
        workspace.output("model").write_text(f"{stage} {sorted(references)}")
        return workspace.commit(outputs=["model"])


def test_a_reference_must_be_an_ancestor_of_the_policy(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    base = made(store, "base_model")
    sft = made(store, "sft", base=base)
    first = made(store, "ppo", sft=sft, judge=made(store, "reward_model", sft=sft))
    for reference in (base, sft, first):
        require_ancestor(store, policy=first, reference=reference)
    require_ancestor(store, policy=sft, reference=sft)

    other = made(store, "sft", data=made(store, "data"))
    for stranger in (other, first):
        with pytest.raises(ConfigError) as refusal:
            require_ancestor(store, policy=sft, reference=stranger)
        assert f"the reference, {stranger.stage} {stranger.key[:12]}, is not" in str(refusal.value)
        assert sft.key[:12] in str(refusal.value)


def test_a_warning_stays_in_the_runs_record(tmp_path: Path) -> None:
    settings = RunConfig(name="r", runs=tmp_path / "runs", store=tmp_path / "store")
    config = PipelineConfig(run=settings)
    with open_run(config, RunOptions()) as record:
        record.warn("not exact any more after step 2: policy.threads 2 -> 1")
        record.warn("not exact any more after step 2: policy.threads 2 -> 1")
    with open_run(config, RunOptions()):
        pass
    said = read_run(tmp_path / "runs" / "r").warnings
    assert said == ["not exact any more after step 2: policy.threads 2 -> 1"]


@pytest.mark.slow
@pytest.mark.engines
def test_another_number_of_threads_is_refused_or_recorded(tmp_path: Path) -> None:
    """The command itself, its roles in one process: killed, then run with another thread count."""
    settings = ("cluster.backend=local", "ppo.steps=30", "preferences.rankings_per_prompt=1")
    command = [sys.executable, "-m", "flows.cli", "run", "tiny"]
    command += [part for setting in settings for part in ("--set", setting)]
    first = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=first, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    metrics = tmp_path / "runs" / "tiny" / "metrics" / "ppo.jsonl"
    deadline = time.monotonic() + 500
    while not (metrics.exists() and len(read_metrics(metrics)) >= 2):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    second = os.environ | {"OMP_NUM_THREADS": "2"}

    def again(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments],
            cwd=tmp_path,
            env=second,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=500,
            check=False,
        )

    refused = again()
    assert refused.returncode != 0
    assert "policy.threads 1 -> 2" in refused.stdout
    assert "ppo.exact = false" in refused.stdout
    finished = again("--set", "ppo.exact=false")
    assert finished.returncode == 0, finished.stdout
    assert "warning: not exact any more after step" in finished.stdout
    [warning] = read_run(tmp_path / "runs" / "tiny").warnings
    assert "policy.threads 1 -> 2" in warning
    [manifest] = (tmp_path / "store" / "stages" / "ppo").glob("*/manifest.json")
    changes = json.loads(manifest.read_text())["metrics"]["changed_on_resume"]
    assert any("policy.threads 1 -> 2" in change for change in changes)
