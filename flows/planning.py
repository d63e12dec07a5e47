"""The plan of a run, before anything starts: made, printed as JSON, and enforced."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from alignment.config import PipelineConfig
from alignment.errors import ConfigError
from alignment.planning.alternatives import Alternative
from alignment.planning.known_shapes import KNOWN_SHAPES, shape_named, shape_of_source
from alignment.planning.machines import Machines, local_machine
from alignment.planning.model_shapes import ModelShape
from alignment.planning.plan import (
    StagePlan,
    StageRequest,
    plan_stage,
    require_room,
    tight_places,
)
from alignment.planning.step_time import StepWork, phase_seconds, step_seconds
from alignment.role_specs import is_side_by_side
from flows.engines import why_no_several_machines
from flows.plan_alternatives import run_alternatives
from flows.plan_request import Lengths, lengths_of, stage_requests, step_work

PLAN_SCHEMA_VERSION = 1

WORTH_A_NOTE = 0.95
"""Another order of the roles is told of if it takes at most this part of the time."""


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Everything predicted about a run on some machines."""

    run: str
    shape: ModelShape
    machines: Machines
    lengths: Lengths
    stages: tuple[StagePlan, ...]
    phases_s: dict[str, float]
    """Of one PPO step; empty if a role asks for GPUs the machines do not have."""
    step_s: float
    """Of one PPO step: phases on GPUs or threads of their own run at the same time."""
    steps: int
    alternatives: tuple[tuple[Alternative, dict[str, Any]], ...]
    """Other ways to run PPO, each with every setting to change, those of earlier stages too."""
    notes: tuple[str, ...]
    refusal: str | None
    """Why the machines cannot be used at all, whatever their size."""

    @property
    def fits(self) -> bool:
        """No stage is predicted to be too large, and the machines can be used."""
        return self.refusal is None and all(s.verdict != "too large" for s in self.stages)

    @property
    def bottleneck(self) -> str | None:
        """The longest phase."""
        return max(self.phases_s, key=lambda name: self.phases_s[name]) if self.phases_s else None


def make_plan(
    config: PipelineConfig,
    machines: Machines,
    *,
    model_shape: str | None = None,
    prompt_tokens: float | None = None,
    response_tokens: float | None = None,
) -> RunPlan:
    """Memory, placement, time and alternatives of a run.

    Args:
        config: the run.
        machines: what there is.
        model_shape: a public shape to plan for in place of `model.source`.
        prompt_tokens: mean length of a prompt, where it is known.
        response_tokens: mean length of a response, where it is known.

    Raises:
        ConfigError: the model's shape is not known.
    """
    shape = shape_named(model_shape) if model_shape else _shape_of(config)
    lengths = lengths_of(config, prompt=prompt_tokens, response=response_tokens)
    requests = stage_requests(config, shape, lengths)
    ppo, work = requests[-1], step_work(config, lengths)
    placeable = not any(s.resources.gpus_per_rank for s in ppo.specs) or machines.gpu is not None
    phases = (
        phase_seconds(ppo.specs, ppo.shapes, work, machines, threads=config.cluster.threads)
        if placeable
        else {}
    )
    return RunPlan(
        run=config.run.name,
        shape=shape,
        machines=machines,
        lengths=lengths,
        stages=tuple(plan_stage(request, config.cluster, machines) for request in requests),
        phases_s=phases,
        step_s=step_seconds(phases, ppo.specs, work),
        steps=config.ppo.steps,
        alternatives=tuple(run_alternatives(config, shape, lengths, machines)),
        notes=(*_notes(config, machines), *_other_order(config, ppo, work, machines, phases)),
        refusal=why_no_several_machines(
            config.cluster, len(machines.nodes), config.run.shared_store
        ),
    )


def refuse_what_cannot_fit(config: PipelineConfig, machines: Machines | None = None) -> list[str]:
    """Refuse a run that surely does not fit this machine; tell where it may get tight.

    A run on an existing cluster, on the local backend or with a model of unknown shape is not
    judged.

    Raises:
        ClusterError: names role, need, memory and what to change.
        ModelError: the model folder's config.json or weights cannot be used.
    """
    elsewhere = config.cluster.address or config.cluster.job_server
    if elsewhere is not None or config.cluster.backend == "local":
        return []
    shape = shape_of_source(config.model.source)
    if shape is None:
        return []
    here = machines or local_machine()
    requests = stage_requests(config, shape, lengths_of(config))
    stages = [plan_stage(request, config.cluster, here) for request in requests]
    require_room(stages)
    return tight_places(stages)


def plan_json(plan: RunPlan) -> dict[str, Any]:
    """The plan for programs: bytes, seconds, and the same names as the settings."""
    return {
        "schema_version": PLAN_SCHEMA_VERSION,
        "run": plan.run,
        "model": {
            **asdict(plan.shape),
            "parameters": plan.shape.parameters,
            "backbone_parameters": plan.shape.backbone_parameters,
        },
        "machines": {
            "source": plan.machines.source,
            "nodes": [asdict(node) for node in plan.machines.nodes],
        },
        "lengths": asdict(plan.lengths),
        "fits": plan.fits,
        "refusal": plan.refusal,
        "stages": [_stage_json(stage) for stage in plan.stages],
        "ppo_step": {
            "seconds": plan.step_s if plan.phases_s else None,
            "steps": plan.steps,
            "phases_s": plan.phases_s,
            "bottleneck": plan.bottleneck,
        },
        "alternatives": [
            {
                "settings": settings,
                "step_s": alternative.step_s,
                "gpus": alternative.gpus,
                "verdict": alternative.plan.verdict,
            }
            for alternative, settings in plan.alternatives
        ],
        "notes": list(plan.notes),
    }


def _stage_json(stage: StagePlan) -> dict[str, Any]:
    return {
        "stage": stage.stage,
        "verdict": stage.verdict,
        "refusal": stage.refusal,
        "roles": [
            {
                **asdict(fit.memory),
                "needed": fit.memory.needed,
                "available": fit.available,
                "verdict": fit.verdict,
            }
            for fit in stage.roles
        ],
        "nodes": [asdict(node) for node in stage.nodes],
    }


def _shape_of(config: PipelineConfig) -> ModelShape:
    shape = shape_of_source(config.model.source)
    if shape is None:
        raise ConfigError(
            f"`model.source` {config.model.source!r} is neither a folder here nor a known public "
            f"model; name its shape with --model-shape: {', '.join(KNOWN_SHAPES)}"
        )
    return shape


def _other_order(
    config: PipelineConfig,
    ppo: StageRequest,
    work: StepWork,
    machines: Machines,
    phases_s: Mapping[str, float],
) -> list[str]:
    """Whether `cluster.side_by_side` had better be the other way round."""
    if not is_side_by_side(ppo.specs, config.cluster.model_copy(update={"side_by_side": True})):
        return []
    other = replace(work, side_by_side=not work.side_by_side)
    seconds = phase_seconds(ppo.specs, ppo.shapes, other, machines, threads=config.cluster.threads)
    now, then = (
        step_seconds(of, ppo.specs, how) for of, how in ((phases_s, work), (seconds, other))
    )
    if then > WORTH_A_NOTE * now:
        return []
    value = str(other.side_by_side).lower()
    cost = " (and need the memory of all roles at once)" if other.side_by_side else ""
    return [
        f"with `cluster.side_by_side = {value}` a PPO step would take {then:.3g} s, not {now:.3g}"
        + cost
    ]


def _notes(config: PipelineConfig, machines: Machines) -> list[str]:
    notes = []
    if config.rounds.count > 1:
        notes.append(
            f"the run has {config.rounds.count} rounds; times are of one, but reward-model "
            "training grows with the rankings of all rounds before"
        )
    on_gpus = config.cluster.policy.gpus_per_rank or config.cluster.generator.gpus_per_rank
    if on_gpus and config.ppo.precision == "float32":
        notes.append(
            '`ppo.precision` is "float32": on GPUs "bfloat16" is several times faster (weights '
            "and optimiser state stay float32)"
        )
    unknown = [node.name for node in machines.nodes if node.memory is None]
    if unknown:
        notes.append(
            f"system memory of {', '.join(dict.fromkeys(unknown))} is not known, so roles there "
            "are not checked against it: add `memory` (bytes) to its resources"
        )
    if machines.gpus:
        notes.append(
            "GPU figures rest on data sheets and published measurements, not on our own runs"
        )
    return notes
