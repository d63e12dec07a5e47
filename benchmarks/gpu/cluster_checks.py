"""What each role computes on a Ray actor, held to the same in this process."""

import filecmp
import gc
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from operator import methodcaller
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from alignment import roles_local
from alignment.cluster import Cluster
from alignment.cluster.shards import shard_batch
from alignment.cluster.trainable import TrainableActor
from alignment.config import (
    ClusterConfig,
    OptimizerConfig,
    Precision,
    RoleResources,
    SFTConfig,
    TrainingConfig,
)
from alignment.data.batching import plan_packed
from alignment.experience import TokenBatch, select_rows
from alignment.planning.machines import GPU_KINDS
from alignment.planning.memory import BatchSizes, role_memory
from alignment.role_specs import FrozenSpec, RoleSpec, TrainableSpec
from alignment.training.reward_model import reward_model_loss
from alignment.training.roles import Loss
from alignment.training.sft import demonstration_loss, train_sft
from benchmarks.gpu.batches import RESPONSES_PER_GROUP, lengths_of, preference_batch, token_batch
from benchmarks.gpu.models import Size

TOLERANCE = {"before": 1e-3, "loss": 1e-5, "gradient_norm": 1e-4, "after": 1e-2}
"""Float32 on two processors; an AdamW step of rate 1e-5 doubles what rounding of signs makes."""
ROUNDS, STEPS = 3, 5


@dataclass(frozen=True, slots=True)
class Bench:
    """A cluster, a model folder, a folder to work in, and the GPUs that a rank gets."""

    cluster: Cluster
    model: Path
    work: Path
    size: Size
    gpus: int

    def trainable(
        self,
        kind: Literal["language", "value"] = "language",
        *,
        precision: Precision = "float32",
        zero_stage: Literal[0, 1, 2, 3] = 0,
    ) -> TrainableSpec:
        """A role on the bench's model."""
        return TrainableSpec(
            name="policy" if kind == "language" else "reward_model",
            kind=kind,
            model_folder=self.model,
            optimizer=OptimizerConfig(learning_rate=1e-5),
            training=TrainingConfig(
                precision=precision,
                zero_stage=zero_stage,
                tokens_per_microbatch=self.size.tokens_per_microbatch,
            ),
            total_steps=1000,
            seed=0,
            resources=RoleResources(gpus_per_rank=self.gpus),
        )

    @contextmanager
    def started(self, spec: RoleSpec) -> Iterator[Any]:
        """The role on its actor, ended afterwards."""
        try:
            yield self.cluster.start_roles([spec])[spec.name]
        finally:
            self.cluster.stop_roles([spec.name])

    def few_rows(self) -> TokenBatch:
        """As much as a CPU can be asked."""
        return select_rows(token_batch(self.size), range(RESPONSES_PER_GROUP))


Check = Callable[[Bench], dict[str, Any]]
"""Figures by name, and whether all is as it should be: `passed`."""


def check_frozen_on_cpu(bench: Bench) -> dict[str, Any]:
    """A role without a GPU takes none of its memory, though the machine has one."""
    before = gpu_memory_mib()
    spec = FrozenSpec(name="reference", kind="language", model_folder=bench.model)
    with bench.started(spec) as role:
        [facts] = role.describe()
        taken = gpu_memory_mib() - before
    seen = {"gpu_memory_mib": taken, "cuda_visible_devices": facts["cuda_visible_devices"]}
    return {**seen, "passed": taken <= 0}


def check_policy(bench: Bench) -> dict[str, Any]:
    """Forward, backward, step, checkpoint, export and SFT of a language model."""
    spec, batch = bench.trainable(), bench.few_rows()
    task = Task(batch, demonstration_loss, float(batch.response_mask.sum()), "logprobs")
    with bench.started(spec) as role:
        figures = _trained(role, spec, task, bench)
        losses: list[float] = []
        config = SFTConfig(epochs=2, sequences_per_minibatch=8, optimizer=spec.optimizer)
        began = time.perf_counter()
        train_sft(config, role, token_batch(bench.size), seed=0, metrics=_Losses(losses))
        figures |= {"sft_losses": [losses[0], losses[-1]], "sft_steps": len(losses)}
        figures["sft_seconds"] = time.perf_counter() - began
    figures["passed"] &= losses[-1] < losses[0]
    return figures


def check_reward_model(bench: Bench) -> dict[str, Any]:
    """The same of a value model, without SFT."""
    batch = preference_batch(bench.few_rows())
    task = Task(batch, reward_model_loss, float(batch.pair_weight.sum()), "scores")
    spec = bench.trainable("value")
    with bench.started(spec) as role:
        return _trained(role, spec, task, bench)


def check_frozen(bench: Bench) -> dict[str, Any]:
    """Reference and reward model answer as they do on the CPU."""
    batch, figures = bench.few_rows(), dict[str, Any]()
    resources = RoleResources(gpus_per_rank=bench.gpus)
    kinds: dict[Literal["language", "value"], str] = {"language": "logprobs", "value": "scores"}
    for kind, question in kinds.items():
        spec = FrozenSpec(
            name=f"frozen_{kind}", kind=kind, model_folder=bench.model, resources=resources
        )
        ask = methodcaller(question, batch)
        with bench.started(spec) as role:
            there = ask(role)
        here = ask(roles_local.start_roles([spec])[spec.name])
        figures[question] = largest(there, here)
    return {**figures, "passed": all(apart < TOLERANCE["before"] for apart in figures.values())}


def check_transport(bench: Bench) -> dict[str, Any]:
    """SFT steps through Ray and called directly in turns, and the memory that a plan foresees."""
    spec, batch = bench.trainable(precision="bfloat16"), token_batch(bench.size)
    denominator = float(batch.response_mask.sum())
    [shard] = shard_batch(batch, 1)
    with bench.started(spec) as role, _in_this_process(spec) as direct:

        def through_ray() -> None:
            role.forward_backward(batch, demonstration_loss, denominator=denominator)
            role.step()

        def directly() -> None:
            direct.forward_backward(shard, demonstration_loss, denominator)
            direct.step()

        seconds = {"ray": [_step_seconds(through_ray)], "direct": [_step_seconds(directly)]}
        for _ in range(ROUNDS):
            seconds["ray"].append(_step_seconds(through_ray))
            seconds["direct"].append(_step_seconds(directly))
        [facts] = role.describe()
    best = {way: statistics.median(times[1:]) for way, times in seconds.items()}
    tokens = lengths_of(batch).tokens
    return {
        "step_seconds": seconds,
        "tokens_per_s": {way: tokens / time for way, time in best.items()},
        "ratio": best["ray"] / best["direct"],
        **_memory(spec, batch, bench.size, facts["gpu_memory_mib"]),
        "passed": best["ray"] < 1.5 * best["direct"],
    }


def check_zero_stages(bench: Bench) -> dict[str, Any]:
    """A step with ZeRO 1 to 3 on one rank is the step with ZeRO 0."""
    batch, seen = bench.few_rows(), list[Step]()
    task = Task(batch, demonstration_loss, float(batch.response_mask.sum()), "logprobs")
    stages: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)
    weights, figures = [], dict[str, Any]()
    for stage in stages:
        with bench.started(bench.trainable(zero_stage=stage)) as role:
            seen.append(take_step(role, task))
            role.export(bench.work / "zero")
        weights.append(_weights_in(bench.work / "zero"))
        shutil.rmtree(bench.work / "zero")
        apart = differences(seen[-1], seen[0])
        apart["weights"] = max(largest(weights[-1][n], weights[0][n]) for n in weights[0])
        figures[f"zero_{stage}"] = apart
    passed = all(within(apart) and apart["weights"] < 1e-4 for apart in figures.values())
    return {**figures, "passed": passed}


CHECKS: tuple[Check, ...] = (
    check_frozen_on_cpu,
    check_policy,
    check_reward_model,
    check_frozen,
    check_transport,
)


@dataclass(frozen=True, slots=True)
class Task:
    """A step to take, and the question whose answers show what it did."""

    batch: TokenBatch
    loss: Loss
    denominator: float
    question: Literal["logprobs", "scores"]

    def ask(self, role: Any) -> Tensor:
        """The role's answers to the batch."""
        answers: Tensor = getattr(role, self.question)(self.batch)
        return answers


@dataclass(frozen=True, slots=True)
class Step:
    """What was seen of one step: answers before and after it, its loss and gradient norm."""

    before: Tensor
    loss: float
    gradient_norm: float
    after: Tensor


def take_step(role: Any, task: Task) -> Step:
    """One optimiser step on any kind of role."""
    before = task.ask(role)
    told = role.forward_backward(task.batch, task.loss, denominator=task.denominator)
    norm = role.step().gradient_norm
    return Step(before, told["loss"], norm, task.ask(role))


def differences(there: Step, here: Step) -> dict[str, float]:
    """Largest difference of the answers, relative ones of the numbers."""
    return {
        "before": largest(there.before, here.before),
        "loss": abs(there.loss / here.loss - 1.0),
        "gradient_norm": abs(there.gradient_norm / here.gradient_norm - 1.0),
        "after": largest(there.after, here.after),
    }


def within(apart: Mapping[str, float]) -> bool:
    """Whether differences are no more than rounding."""
    return all(apart[name] < limit for name, limit in TOLERANCE.items())


def largest(there: Tensor, here: Tensor) -> float:
    """Largest difference of two tensors' numbers."""
    return float((there - here).abs().max())


def _trained(role: Any, spec: TrainableSpec, task: Task, bench: Bench) -> dict[str, Any]:
    """A step against the CPU's, then a checkpoint and an export."""
    seen = take_step(role, task)
    apart = differences(seen, take_step(roles_local.start_roles([spec])[spec.name], task))
    checkpoint = _checkpoint(role, task, bench.work)
    exported = bench.work / "exported"
    role.export(exported)
    frozen = FrozenSpec(name="exported", kind=spec.kind, model_folder=exported)
    [loaded] = roles_local.start_roles([frozen]).values()
    apart_exported = largest(task.ask(role), task.ask(loaded))
    shutil.rmtree(exported)
    [facts] = role.describe()
    named = ("device", "engine", "optimizer", "deepspeed", "gpu_memory_mib")
    on_gpu = str(facts["device"]).startswith("cuda")
    resumed = all(checkpoint["same"].values()) and within(checkpoint["step_after_loading"])
    passed = within(apart) and resumed and on_gpu == bool(bench.gpus)
    return {
        "described": {name: facts[name] for name in named},
        "gpu": facts["exactness"].get("gpu"),
        "loss": seen.loss,
        "gradient_norm": seen.gradient_norm,
        "from_cpu": apart,
        **checkpoint,
        "exported": apart_exported,
        "passed": passed and apart_exported < TOLERANCE["before"],
    }


def _checkpoint(role: Any, task: Task, work: Path) -> dict[str, Any]:
    """Saved, trained on, loaded and saved again: file by file the same, and so is the next step."""
    first, second = work / "first", work / "second"
    began = time.perf_counter()
    role.save_checkpoint(first)
    saved_s, size = time.perf_counter() - began, sum(f.stat().st_size for f in _files(first))
    onwards = take_step(role, task)
    began = time.perf_counter()
    role.load_checkpoint(first)
    loaded_s = time.perf_counter() - began
    role.save_checkpoint(second)
    same = {
        str(path.relative_to(first)): filecmp.cmp(
            path, second / path.relative_to(first), shallow=False
        )
        for path in _files(first)
    }
    shutil.rmtree(first)
    shutil.rmtree(second)
    again = differences(take_step(role, task), onwards)
    return {
        "same": same,
        "step_after_loading": again,
        "checkpoint": {"gib": size / 2**30, "save_s": saved_s, "load_s": loaded_s},
    }


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _weights_in(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {n: t for f in folder.glob("*.safetensors") for n, t in load_file(f).items()}


def _memory(
    spec: TrainableSpec, batch: TokenBatch, size: Size, held_mib: float | None
) -> dict[str, Any]:
    """GiB that a plan foresees above the process's own, and what torch held at most.

    A plan takes the largest microbatch for granted; `planned_as_cut` knows the one there was.
    """
    lengths = lengths_of(batch)
    rows = batch.attention_mask.sum(1)
    budget = spec.training.tokens_per_microbatch
    cut = plan_packed(rows.tolist(), tokens_per_microbatch=budget)
    sizes = BatchSizes(
        rows=len(rows),
        prompt_tokens=max(lengths.prompts),
        response_tokens=max(lengths.responses),
    )

    def planned_gib(tokens: int) -> float:
        training = spec.training.model_copy(update={"tokens_per_microbatch": tokens})
        as_cut = replace(spec, training=training)
        gpu = GPU_KINDS["H200"]
        plan = role_memory(as_cut, size.shape, sizes, ClusterConfig(), gpu, publishes=False)
        return (plan.working - plan.overhead) / 2**30

    return {
        "planned_gib": planned_gib(budget),
        "planned_as_cut_gib": planned_gib(max(int(rows[piece].sum()) for piece in cut)),
        "held_gib": None if held_mib is None else held_mib / 2**10,
    }


def _step_seconds(step: Callable[[], None]) -> float:
    """Mean of some steps; each ends with a number that the CPU reads."""
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    return (time.perf_counter() - began) / STEPS


def gpu_memory_mib() -> float:
    """Memory in use on the first GPU, by whomever; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0.0
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return float(subprocess.check_output(query, text=True).splitlines()[0])


@contextmanager
def _in_this_process(spec: TrainableSpec) -> Iterator[TrainableActor]:
    """A role's one rank without Ray; its memory is given back."""
    rank = TrainableActor(spec, 60.0, rank=0)
    rank.start(rank.open_meeting_point())
    try:
        yield rank
    finally:
        torch.distributed.destroy_process_group()
        vars(rank).clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass(frozen=True, slots=True)
class _Losses:
    """Keeps SFT's losses."""

    losses: list[float] = field(default_factory=list)

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """One step's."""
        self.losses.append(metrics["sft/loss"])
