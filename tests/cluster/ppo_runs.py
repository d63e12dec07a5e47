"""PPO on the tiny model with the real engines, killed on purpose, and how two runs compare."""

import hashlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignment.checkpoints import Checkpoints, RolloutJournal
from alignment.cluster import Cluster
from alignment.cluster.groups import ActorGroup, Call
from alignment.config import ClusterConfig, OptimizerConfig, PPOConfig, RoleResources
from alignment.experience import EncodedPrompt
from alignment.role_specs import FrozenSpec, GeneratorSpec, RoleSpec, TrainableSpec
from alignment.training.overlap import OneStepAhead
from alignment.training.ppo import train_ppo
from alignment.training.roles import PPORoles

TRAINED = ("policy", "critic")
PROMPTS = [EncodedPrompt(id=f"p{i}", token_ids=(1, 5 + i, 9, 40 + i)) for i in range(6)]
SEED = 11


class NoMetrics:
    def record(self, step: int, metrics: Any) -> None:
        """Nothing is kept."""


def ppo_config(steps: int, **changes: Any) -> PPOConfig:
    """Four of six prompts a step: the first epoch ends in the middle of the second step."""
    rate = OptimizerConfig(learning_rate=3e-3, final_learning_rate_fraction=0.5)
    settings = {
        "steps": steps,
        "prompts_per_step": 4,
        "responses_per_prompt": 2,
        "sequences_per_minibatch": 4,
        "max_response_tokens": 8,
        "tokens_per_microbatch": 40,
        "kl_budget_nats": 1000.0,
        "checkpoint_every_steps": 1,
        "optimizer": rate,
        "critic_optimizer": rate,
    }
    return PPOConfig(**(settings | changes))


def role_specs(model: Path, config: PPOConfig) -> list[RoleSpec]:
    updates, little = config.policy_updates, RoleResources(cpus_per_rank=0.05)
    place: dict[str, Any] = {"model_folder": model, "resources": little}
    settings = place | {"training": config, "seed": SEED}
    return [
        TrainableSpec(
            name="policy",
            kind="language",
            optimizer=config.optimizer,
            total_steps=updates,
            **settings,
        ),
        TrainableSpec(
            name="critic",
            kind="value",
            optimizer=config.optimizer,
            total_steps=updates,
            **settings,
        ),
        FrozenSpec(name="reference", kind="language", **place),
        FrozenSpec(name="reward_model", kind="value", **place),
        GeneratorSpec(name="generator", max_sequence_tokens=64, **place),
    ]


def train(config: PPOConfig, roles: PPORoles, folder: Path, **checkpointing: Any) -> None:
    """From the folder's newest checkpoint to the end, sampling ahead where settings say so."""
    checkpoints = Checkpoints(folder / "checkpoints", stage_version=1, keep=99, **checkpointing)
    journal = RolloutJournal(folder / "journal")
    if config.overlap:
        ahead = OneStepAhead(roles.generator, journal, config, PROMPTS, SEED)  # type: ignore[arg-type]
        roles = replace(roles, generator=ahead)
    train_ppo(
        config,
        roles,
        PROMPTS,
        seed=SEED,
        checkpoints=checkpoints,
        journal=journal,
        metrics=NoMetrics(),
    )


@dataclass(frozen=True)
class Kill:
    """`victim`'s process gets SIGKILL while `role` is busy with its nth `operation`."""

    victim: str
    role: str
    operation: str
    nth: int
    delay_s: float = 0.0


def arm(kill: Kill, groups: dict[str, ActorGroup]) -> None:
    """Let the kill happen. `victim` is a role, or `driver`: this process."""
    group, submit, seen = groups[kill.role], groups[kill.role].submit, 0

    def submit_and_kill(operation: str, arguments: Any) -> Call:
        nonlocal seen
        call = submit(operation, arguments)
        if operation == kill.operation:
            seen += 1
            if seen == kill.nth:
                pid = os.getpid() if kill.victim == "driver" else groups[kill.victim]._pids[0]
                threading.Timer(kill.delay_s, os.kill, (pid, signal.SIGKILL)).start()
        return call

    group.submit = submit_and_kill  # type: ignore[method-assign]


def trained_state(folder: Path, step: int) -> dict[str, str]:
    """Digest of every trained role's weights, moments and schedule in a step's checkpoint."""
    checkpoint = folder / "checkpoints" / f"step-{step:06d}"
    digests = {}
    for role in TRAINED:
        files = sorted((checkpoint / role / "engine").glob("*.pt"))
        assert files, f"{checkpoint} holds no state of the {role}"
        digests[role] = digest(torch.load(path, weights_only=False) for path in files)
    return digests


def sampled(folder: Path) -> dict[str, str]:
    """Digest of each step's journal: prompts in their order, tokens, log-probabilities, version."""
    return {
        path.name: digest([torch.load(path, weights_only=True)])
        for path in sorted((folder / "journal").glob("*.pt"))
    }


def digest(values: Iterable[Any]) -> str:
    """Of all tensors and numbers in nested containers, with their names."""
    total = hashlib.sha256()
    for value in values:
        _add("", value, total)
    return total.hexdigest()


def _add(name: str, value: Any, total: Any) -> None:
    if isinstance(value, Tensor):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.contiguous().numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            _add(f"{name}.{key}", value[key], total)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _add(f"{name}.{index}", item, total)
    elif isinstance(value, int | float | str | bool | None):
        total.update(f"{name} {value!r}".encode())


def drive(model: Path, folder: Path, config: PPOConfig, kill: Kill | None) -> None:
    """A whole run with a Ray of its own, as a driver process."""
    torch.set_num_threads(1)
    cluster_config = ClusterConfig(object_store_gib=0.1, threads=1)
    with Cluster.open(cluster_config, log_folder=folder / "logs") as cluster:
        roles = cluster.start_roles(role_specs(model, config))
        print("STARTED", cluster.scratch.parent, *actor_pids(roles), flush=True)
        if kill is not None:
            arm(kill, {name: role.group for name, role in roles.items()})
            if kill.operation in ("copy_bucket", "load_bucket"):  # which need not be otherwise
                roles["generator"]._can_read = lambda _: False
        train(config, PPORoles(**roles), folder)
    print("FINISHED", flush=True)


def actor_pids(roles: dict[str, Any]) -> list[int]:
    return [rank["pid"] for role in roles.values() for rank in role.describe()]


if __name__ == "__main__":
    drive(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        PPOConfig.model_validate_json(sys.argv[3]),
        Kill(**json.loads(sys.argv[4])) if len(sys.argv) > 4 else None,
    )
