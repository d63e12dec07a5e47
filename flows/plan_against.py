"""A plan against what a finished run recorded: memory of each role, shares of a step's phases."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignment.config import PipelineConfig
from alignment.errors import StoreError
from alignment.metrics import MEMORY_OF
from alignment.planning.known_shapes import shape_of_source
from alignment.planning.machines import GIB, Machines
from alignment.planning.memory import RoleMemory
from alignment.planning.plan import plan_stage
from alignment.planning.step_time import phase_seconds, step_seconds
from flows.metrics_log import read_metrics
from flows.plan_request import lengths_of, seen_lengths, stage_requests, step_work
from flows.summary import Summary, read_summary

MEMORY_TOLERANCE = 0.15
SHARE_TOLERANCE = 0.25


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One figure as predicted and as measured; `error` is predicted over measured, less 1."""

    name: str
    predicted: float
    measured: float
    tolerance: float

    @property
    def error(self) -> float:
        """Relative; infinite where nothing was measured."""
        return self.predicted / self.measured - 1 if self.measured > 0 else float("inf")

    @property
    def within(self) -> bool:
        """The error is at most the tolerance."""
        return abs(self.error) <= self.tolerance


@dataclass(frozen=True, kw_only=True)
class PlanCheck:
    """GiB above an idle process by role, shares by phase, and seconds of a step."""

    run: str
    memory: tuple[Comparison, ...]
    shares: tuple[Comparison, ...]
    step: Comparison

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "run": self.run,
            **{
                part: [asdict(c) | {"error": c.error, "within": c.within} for c in comparisons]
                for part, comparisons in (
                    ("memory_above_idle_gib", self.memory),
                    ("phase_shares", self.shares),
                    ("step_s", (self.step,)),
                )
            },
        }


def compare_with_run(config: PipelineConfig, machines: Machines, folder: Path) -> PlanCheck:
    """Predict what the run in `folder` did, and compare.

    Lengths are those the run saw, not the settings' limits: for time the median step's, for memory
    those of the step with the longest responses on average. A role's peak is that of all stages it
    took part in, but for stages that the run took from the store.

    Raises:
        StoreError: the run is not finished, or has no PPO metrics.
        ConfigError: the model's shape is not known.
    """
    steps = read_metrics(folder / "metrics" / "ppo.jsonl")
    if not steps:
        raise StoreError(f"run {folder.name} has no metrics of PPO steps to compare with")
    responses = [step["ppo/response_tokens_mean"] for step in steps]
    lengths = lengths_of(config, response=median(responses))
    # Rows are packed: what a batch holds is its tokens, not rows as long as the longest.
    held = replace(seen_lengths(config, lengths), longest_response=ceil(max(responses)))
    shape = shape_of_source(config.model.source)
    if shape is None:
        raise StoreError(f"the shape of `model.source` {config.model.source!r} is not known")
    requests, summary = stage_requests(config, shape, held), read_summary(folder)
    stages = [
        plan_stage(request, config.cluster, machines)
        for request in requests
        if request.stage == "ppo" or request.stage not in summary.reused
    ]
    memories = [fit.memory for stage in stages for fit in stage.roles]
    ppo = requests[-1]
    work = step_work(config, lengths)
    predicted = phase_seconds(ppo.specs, ppo.shapes, work, machines, threads=config.cluster.threads)
    return PlanCheck(
        run=folder.name,
        memory=tuple(_memory(memories, _peaks(summary, steps))),
        shares=tuple(_shares(predicted, steps)),
        step=Comparison(
            name="PPO step",
            predicted=step_seconds(predicted, ppo.specs, work),
            measured=median(step["time/step_s"] for step in steps),
            tolerance=SHARE_TOLERANCE,
        ),
    )


def print_check(console: Console, check: PlanCheck) -> None:
    """Print the comparison as one table."""
    table = Table(title=f"plan against run {check.run}", title_justify="left")
    table.add_column("quantity")
    for heading in ("predicted", "measured", "error", "accepted"):
        table.add_column(heading, justify="right")
    for unit, comparisons in (
        ("GiB above idle", check.memory),
        ("share", check.shares),
        ("s", (check.step,)),
    ):
        for c in comparisons:
            table.add_row(
                f"{c.name}, {unit}",
                f"{c.predicted:.3g}",
                f"{c.measured:.3g}",
                Text(f"{c.error:+.0%}", style="green" if c.within else "red"),
                f"{c.tolerance:.0%}",
            )
    console.print(table)


def _peaks(summary: Summary, steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """GiB at the highest, by role and rank, until the last PPO step.

    The summary knows the last command only, with the evaluation, which is not planned; it serves
    runs whose steps do not tell memory.
    """
    peaks: dict[str, float] = {}
    for name, gib in ((name, gib) for step in steps for name, gib in step.items()):
        if name.startswith(MEMORY_OF):
            role = name.removeprefix(MEMORY_OF)
            peaks[role] = max(gib, peaks.get(role, 0.0))
    return peaks or dict(summary.memory.peak_pss_gib)


def _memory(memories: Sequence[RoleMemory], peaks: Mapping[str, float]) -> list[Comparison]:
    """Roles on CPU only: of a rank on GPUs the record has the host process, not the device."""
    largest: dict[str, RoleMemory] = {}
    for memory in memories:
        known = largest.get(memory.role)
        if not memory.gpus and (known is None or memory.needed > known.needed):
            largest[memory.role] = memory
    return [
        Comparison(
            name=f"{role}-{rank}",
            predicted=(memory.needed - memory.overhead) / GIB,
            measured=peaks[f"{role}-{rank}"] - memory.overhead / GIB,
            tolerance=MEMORY_TOLERANCE,
        )
        for role, memory in largest.items()
        for rank in range(memory.ranks)
        if f"{role}-{rank}" in peaks
    ]


def _shares(predicted: Mapping[str, float], steps: Sequence[Mapping[str, Any]]) -> list[Comparison]:
    """Shares of the phases that both know, each of the sum of these phases."""
    measured = {
        name: median(step[f"time/{name}_s"] for step in steps)
        for name in predicted
        if all(f"time/{name}_s" in step for step in steps)
    }
    whole, total = sum(predicted[name] for name in measured), sum(measured.values())
    return [
        Comparison(
            name=name,
            predicted=predicted[name] / whole,
            measured=measured[name] / total,
            tolerance=SHARE_TOLERANCE,
        )
        for name in measured
    ]
