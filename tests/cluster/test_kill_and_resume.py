"""A PPO run whose processes are killed ends as the unbroken run does, to the bit.

Compared at the end: weights, moments and schedule of policy and critic, and every step's journal
(prompts in their order, sampled tokens, log-probabilities). CPU, float32, synchronous.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import ppo_runs
import pytest
from mounts import small_disk
from ppo_runs import Kill, arm, ppo_config, role_specs, sampled, train, trained_state
from test_nothing_left import processes_naming, wait_until_gone

from alignment.checkpoints import Checkpoints, LoopState, RolloutJournal
from alignment.cluster.leftovers import remove_abandoned
from alignment.cluster.session import Cluster
from alignment.config import PPOConfig
from alignment.errors import CheckpointError, ClusterError
from alignment.experience import Rollout
from alignment.training.roles import PPORoles

pytestmark = pytest.mark.engines

MOMENTS = {
    "generate": ("generator", "generate"),
    "update": ("policy", "forward_backward"),
    "checkpoint": ("critic", "save_checkpoint"),
    "copy": ("policy", "copy_bucket"),
    "sync": ("generator", "load_bucket"),
    "lent": ("generator", "load_lent"),
}


class Stage:
    """The roles of a run, of which single ones can be started anew."""

    def __init__(self, cluster: Cluster, model: Path, config: PPOConfig) -> None:
        patient = cluster.config.model_copy(update={"start_timeout_s": 600.0})
        self._cluster = Cluster(patient, logs=cluster.logs)
        self._specs = {spec.name: spec for spec in role_specs(model, config)}
        self._roles: dict[str, Any] = self._cluster.start_roles(list(self._specs.values()))

    @property
    def roles(self) -> PPORoles:
        return PPORoles(**self._roles)

    @property
    def groups(self) -> dict[str, Any]:
        return {name: role.group for name, role in self._roles.items()}

    def replace(self, name: str) -> None:
        self._cluster.stop_roles([name])
        self._roles |= self._cluster.start_roles([self._specs[name]])

    def copy_weights(self, copies: bool) -> None:
        """Let engines get copies of the weights, or read the policy's again."""
        if copies:
            self._roles["generator"]._can_read = lambda _: False
        else:
            self._roles["generator"].__dict__.pop("_can_read", None)

    def set_apart(self) -> None:
        """Let every role claim a device of its own, so that they work side by side."""
        for name, group in self.groups.items():
            group.devices = frozenset([name])

    def end(self) -> None:
        self._cluster.stop_roles(list(self._roles))


@contextmanager
def stage_with_unbroken_run(
    cluster: Cluster, model: Path, config: PPOConfig, folder: Path
) -> Iterator[Stage]:
    """Roles that have made an unbroken run in `folder/unbroken`; `folder/start` is before it."""
    stage = Stage(cluster, model, config)
    try:
        start = Checkpoints(folder / "start" / "checkpoints", stage_version=1)
        start.write(stage.roles, LoopState(0, config.kl_coefficient))
        train(config, stage.roles, folder / "unbroken")
        yield stage
    finally:
        stage.end()


def killed(stage: Stage, config: PPOConfig, folder: Path, kill: Kill) -> str:
    """Train until the kill; the error, which must be the victim's own."""
    arm(kill, stage.groups)
    with pytest.raises(ClusterError) as failure:
        train(config, stage.roles, folder)
    assert str(failure.value).startswith(f"{kill.victim} rank 0 (process "), failure.value
    stage.replace(kill.victim)
    return str(failure.value)


def rollouts(folder: Path, config: PPOConfig) -> list[Rollout]:
    found = [RolloutJournal(folder / "journal").replay(step) for step in range(config.steps)]
    return [rollout for rollout in found if rollout is not None]


def scratch_of(output: str) -> Path:
    """Where a driver's Ray had its files."""
    line = next(line for line in output.splitlines() if line.startswith("STARTED"))
    return Path(line.split()[1]).parent


def assert_same(folder: Path, unbroken: Path, config: PPOConfig) -> None:
    assert sampled(folder) == sampled(unbroken)
    assert len(sampled(folder)) == config.steps
    assert trained_state(folder, config.steps) == trained_state(unbroken, config.steps)
    assert trained_state(folder, config.steps) != trained_state(unbroken, config.steps - 1)


def test_policy_critic_and_generator_are_killed_in_turn(
    cluster: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    """The unbroken run's roles take turns (they share the CPU), the broken one's do not."""
    config = ppo_config(4)
    with stage_with_unbroken_run(cluster, tiny_model, config, tmp_path) as stage:
        assert len({group.devices for group in stage.groups.values()}) == 1
        broken = tmp_path / "start"
        stage.set_apart()
        said = killed(stage, config, broken, Kill("policy", "policy", "forward_backward", 3))
        assert "died in forward_backward" in said
        stage.set_apart()
        said = killed(stage, config, broken, Kill("critic", "critic", "save_checkpoint", 2))
        assert "died in save_checkpoint" in said
        assert not list((broken / "checkpoints").glob("draft-*"))
        said = killed(stage, config, broken, Kill("generator", "generator", "generate", 1))
        assert "died in generate" in said
        stage.copy_weights(True)
        said = killed(stage, config, broken, Kill("policy", "policy", "copy_bucket", 1))
        assert "died in copy_bucket" in said  # and leaves the engine in the midst of an update
        stage.copy_weights(False)  # of the new policy no engine has read anything yet
        killed(stage, config, broken, Kill("policy", "generator", "load_lent", 1))
        stage.set_apart()
        train(config, stage.roles, broken)
    assert_same(broken, tmp_path / "unbroken", config)


@pytest.mark.slow
def test_a_run_that_samples_ahead_is_killed(
    cluster: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    """Weights a version old are gone with the kill, so what they sampled must be in the journal."""
    config = ppo_config(6, overlap=True)
    with stage_with_unbroken_run(cluster, tiny_model, config, tmp_path) as stage:
        versions = [int(r.policy_version[0]) for r in rollouts(tmp_path / "unbroken", config)]
        assert versions == [0, 0, 1, 2, 3, 4]
        broken = tmp_path / "start"
        killed(stage, config, broken, Kill("policy", "policy", "forward_backward", 3))
        killed(stage, config, broken, Kill("generator", "generator", "generate", 2))
        killed(stage, config, broken, Kill("critic", "critic", "save_checkpoint", 2))
        killed(stage, config, broken, Kill("generator", "generator", "load_lent", 2))
        kill = Kill("driver", "policy", "step", 2, 0.002)
        code, output = driven(tiny_model, broken, config, kill)
        assert code == -signal.SIGKILL, output
        train(config, stage.roles, broken)
        remove_abandoned(scratch_of(output))
    assert_same(broken, tmp_path / "unbroken", config)


@pytest.mark.slow
def test_any_role_is_killed_at_any_moment(
    cluster: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    """Every role at every moment in one run, in an order and after delays drawn from a seed."""
    draw = random.Random(5)
    cases = list(product(("policy", "critic", "generator"), MOMENTS))
    draw.shuffle(cases)
    config = ppo_config(len(cases) + 2)
    with stage_with_unbroken_run(cluster, tiny_model, config, tmp_path) as stage:
        broken = tmp_path / "start"
        for victim, moment in cases:
            delay_s = draw.choice([0.0, draw.uniform(0.0, 0.03)])
            stage.copy_weights(moment in ("copy", "sync"))
            killed(stage, config, broken, Kill(victim, *MOMENTS[moment], 1, delay_s))
        train(config, stage.roles, broken)
    assert_same(broken, tmp_path / "unbroken", config)


@pytest.mark.slow
def test_stopping_after_each_step_and_sampling_again_change_nothing(
    cluster: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    """Save, resume, save, resume: at each step of two epochs, and once without the journal."""
    config = ppo_config(4)
    with stage_with_unbroken_run(cluster, tiny_model, config, tmp_path) as stage:
        for folder in ("start", "without_journal"):
            if folder == "without_journal":
                shutil.copytree(tmp_path / "start", tmp_path / folder)
                shutil.rmtree(tmp_path / folder / "journal")
                for step in (2, 3, 4):
                    shutil.rmtree(tmp_path / folder / "checkpoints" / f"step-{step:06d}")
            for step in range(1, config.steps + 1):
                train(config.model_copy(update={"steps": step}), stage.roles, tmp_path / folder)
        again = tmp_path / "without_journal"
        assert_same(tmp_path / "start", tmp_path / "unbroken", config)
        assert trained_state(again, 4) == trained_state(tmp_path / "unbroken", 4)
        expected = sampled(tmp_path / "unbroken")
        del expected["step-000000.pt"]
        assert sampled(again) == expected, "drawn again, the tokens are the same"


@pytest.mark.slow
def test_a_disk_that_fills_up_during_a_checkpoint(
    cluster: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    config = ppo_config(3)
    with (
        small_disk(tmp_path / "disk", mebibytes=64) as disk,
        stage_with_unbroken_run(cluster, tiny_model, config, tmp_path) as stage,
    ):
        broken = disk / "run"
        shutil.copytree(tmp_path / "start", broken)
        filler, save = disk / "filler", stage.roles.critic.save_checkpoint
        calls = 0

        def fill_the_disk_and_save(folder: Path) -> None:
            nonlocal calls
            calls += 1
            if calls == 2:
                with filler.open("wb") as file:
                    file.truncate(0)
                    os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - 100_000)
            save(folder)

        stage._roles["critic"].save_checkpoint = fill_the_disk_and_save
        with pytest.raises(CheckpointError, match=r"no room for the checkpoint of step 2: it need"):
            train(config, stage.roles, broken)
        assert not list((broken / "checkpoints").glob("draft-*"))
        with pytest.raises(CheckpointError, match=r"no room .* goes on after step 1"):
            train(config, stage.roles, broken)
        filler.unlink()
        train(config, stage.roles, broken)
        assert_same(broken, tmp_path / "unbroken", config)


def driven(model: Path, folder: Path, config: PPOConfig, kill: Kill | None) -> tuple[int, str]:
    """Run a driver process to its end; its exit code and output."""
    script = [sys.executable, ppo_runs.__file__, str(model), str(folder)]
    script.append(config.model_dump_json())
    arguments = [json.dumps(asdict(kill))] if kill else []
    driver = subprocess.run(
        [*script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        check=False,
        start_new_session=True,
    )
    return driver.returncode, driver.stdout


@pytest.mark.slow
def test_the_driver_is_killed_at_any_moment(
    cluster: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    """Six processes, one run; what a killed one leaves is gone when the next has started."""
    draw = random.Random(6)
    config, broken = ppo_config(4), tmp_path / "broken"
    scratch = None
    for moment in [*MOMENTS, None]:
        kill = None
        if moment is not None:
            kill = Kill("driver", *MOMENTS[moment], 2, draw.uniform(0.001, 0.03))
        code, output = driven(tiny_model, broken, config, kill)
        assert code == (-signal.SIGKILL if kill else 0), output
        if scratch is not None:
            assert not scratch.exists()
        line = next(line for line in output.splitlines() if line.startswith("STARTED"))
        scratch = Path(line.split()[1])
        wait_until_gone({*map(int, line.split()[2:])} | processes_naming(scratch))
    with stage_with_unbroken_run(cluster, tiny_model, config, tmp_path):
        assert_same(broken, tmp_path / "unbroken", config)
    remove_abandoned(scratch.parent)
