"""Other settings of a stage that fit the machines, fastest first.

What may change: the number of ranks and engines, tensor parallelism, which frozen roles stay in
system memory, ZeRO stage, gradient checkpointing, tokens a microbatch. None of them alters what
is computed. Roles never share a GPU: `gpus_per_rank` is a whole number.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from alignment.config import ClusterConfig
from alignment.planning.machines import Machines
from alignment.planning.plan import StagePlan, StageRequest, plan_stage
from alignment.planning.step_time import Load, StepWork, load_of, phase_seconds, step_seconds
from alignment.role_specs import FrozenSpec, GeneratorSpec, RoleSpec, TrainableSpec, shares_with

_MICROBATCH_SHARES = (1, 2, 4)
_ENGINE_GPUS = (1, 2, 4, 8)
_WORTH_MORE_GPUS = 0.98
"""More GPUs are proposed only if the step takes at most this share of the time."""
_WORTH_A_CHANGE = 0.95
"""What fits is to be changed only for a step that takes at most this share of the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Settings that differ from the given ones, with what they lead to."""

    settings: Mapping[str, Any]
    step_s: float
    gpus: int
    plan: StagePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class _Option:
    """One way to run some roles: their GPUs in all, and how long a step keeps them busy."""

    specs: tuple[RoleSpec, ...]
    gpus: int
    load: Load


def alternatives(
    request: StageRequest,
    cluster: ClusterConfig,
    work: StepWork,
    machines: Machines,
    *,
    section: str,
    limit: int = 3,
) -> list[Alternative]:
    """At most `limit` plans that fit, fastest first, the one with the fewest GPUs among them.

    Where the stage fits as it is, only faster ones.

    Args:
        request: the stage as it is set.
        cluster: the `[cluster]` settings.
        work: one step, for the times.
        machines: what there is.
        section: table of the stage's training settings, e.g. `ppo`.
        limit: how many to give.
    """
    enough = _time_to_beat(request, cluster, work, machines)
    for place in ("gpu", "cpu") if machines.gpus else ("cpu",):
        fitting = _fitting(request, cluster, work, machines, section, place)
        found = [alternative for alternative in fitting if alternative.step_s < enough]
        if found:  # without GPUs only where none of them serves
            found.sort(key=lambda a: (a.step_s, a.gpus, len(a.settings)))
            return _chosen(found, limit)
    return []


def _time_to_beat(
    request: StageRequest, cluster: ClusterConfig, work: StepWork, machines: Machines
) -> float:
    if plan_stage(request, cluster, machines).verdict != "fits":
        return float("inf")
    seconds = phase_seconds(request.specs, request.shapes, work, machines, threads=cluster.threads)
    return _WORTH_A_CHANGE * step_seconds(seconds, request.specs, work)


def _fitting(
    request: StageRequest,
    cluster: ClusterConfig,
    work: StepWork,
    machines: Machines,
    section: str,
    place: str,
) -> Iterator[Alternative]:
    for training in _training_settings(request):
        for specs in _assignments(request, cluster, work, machines, training, place):
            changed = replace(request, specs=specs)
            plan = plan_stage(changed, cluster, machines)
            if plan.verdict == "too large":
                continue
            settings = _differences(request.specs, specs, section)
            if settings:
                yield _alternative(settings, changed, plan, cluster, work, machines)


def _alternative(
    settings: Mapping[str, Any],
    request: StageRequest,
    plan: StagePlan,
    cluster: ClusterConfig,
    work: StepWork,
    machines: Machines,
) -> Alternative:
    seconds = phase_seconds(request.specs, request.shapes, work, machines, threads=cluster.threads)
    return Alternative(
        settings=settings,
        step_s=step_seconds(seconds, request.specs, work),
        gpus=sum(_gpus_of(spec) for spec in request.specs),
        plan=plan,
    )


def _chosen(found: Sequence[Alternative], limit: int) -> list[Alternative]:
    """Of those sorted by time: the fastest, then each time the fastest on half its GPUs or fewer,
    and last the one with the fewest.
    """
    kept: list[Alternative] = []
    for alternative in found:
        if not kept or alternative.gpus <= kept[-1].gpus // 2 < kept[-1].gpus:
            kept.append(alternative)
    return kept if len(kept) <= limit else [*kept[: limit - 1], kept[-1]]


def _training_settings(request: StageRequest) -> Iterator[dict[str, Any]]:
    """Changes of the settings that all trained roles of the stage share."""
    trained = [spec for spec in request.specs if isinstance(spec, TrainableSpec)]
    if not trained:
        yield {}
        return
    row = max(request.batches[spec.name].row_tokens for spec in trained)
    now = trained[0].training.tokens_per_microbatch
    budgets = dict.fromkeys(max(row, now // share) for share in _MICROBATCH_SHARES)
    stages = dict.fromkeys((trained[0].training.zero_stage, 0, 2, 3))
    for stage, checkpointing, budget in product(stages, (False, True), budgets):
        yield {
            "zero_stage": stage,
            "gradient_checkpointing": checkpointing,
            "tokens_per_microbatch": min(budget, now) if now >= row else budget,
        }


def _assignments(
    request: StageRequest,
    cluster: ClusterConfig,
    work: StepWork,
    machines: Machines,
    training: Mapping[str, Any],
    place: str,
) -> Iterator[tuple[RoleSpec, ...]]:
    """The fastest way to give GPUs to the roles, for each number of GPUs that makes it faster."""
    changed = [_with_training(spec, training) for spec in request.specs]
    hosts = [spec for spec in changed if shares_with(spec) is None]
    best: dict[int, list[_Option]] = {0: [_Option(specs=(), gpus=0, load=Load())]}
    for host in hosts:
        guests = [spec for spec in changed if shares_with(spec) == host.name]
        ways = [
            way
            for resources in _resources(host, machines, place)
            if (way := _option(request, (resources, *guests), cluster, work, machines))
        ]
        following: dict[int, list[_Option]] = {}
        for before, way in product((o for some in best.values() for o in some), ways):
            gpus = before.gpus + way.gpus
            if gpus <= machines.gpus:
                specs, load = (*before.specs, *way.specs), before.load + way.load
                together = _Option(specs=specs, gpus=gpus, load=load)
                following[gpus] = _none_beaten([*following.get(gpus, []), together])
        best = following
    order = {spec.name: index for index, spec in enumerate(changed)}
    fastest = float("inf")
    for gpus in sorted(best):
        option = min(best[gpus], key=lambda o: o.load.seconds)
        if option.load.seconds < _WORTH_MORE_GPUS * fastest:
            fastest = option.load.seconds
            yield tuple(sorted(option.specs, key=lambda spec: order[spec.name]))


def _none_beaten(options: list[_Option]) -> list[_Option]:
    """The options without the last one if another is as good, else without those it beats."""
    *others, new = options
    if any(other.load <= new.load for other in others):
        return others
    return [*(other for other in others if not new.load <= other.load), new]


def _option(
    request: StageRequest,
    specs: tuple[RoleSpec, ...],
    cluster: ClusterConfig,
    work: StepWork,
    machines: Machines,
) -> _Option | None:
    """Of a role and those inside it; None if the role alone does not fit its GPUs."""
    host, *_ = specs
    alone = replace(request, specs=(host,))
    if plan_stage(alone, cluster, machines).verdict == "too large":
        return None
    seconds = phase_seconds(specs, request.shapes, work, machines, threads=cluster.threads)
    return _Option(specs=specs, gpus=_gpus_of(host), load=load_of(seconds, specs, work))


def _gpus_of(spec: RoleSpec) -> int:
    own = shares_with(spec) is None
    return spec.resources.ranks * spec.resources.gpus_per_rank if own else 0


def _resources(spec: RoleSpec, machines: Machines, place: str) -> Iterator[RoleSpec]:
    """The role with every number of ranks and GPUs worth trying.

    Policy and rollout engines are all in one place, as their weights cannot cross; other roles
    may stay in system memory.
    """
    bound = isinstance(spec, GeneratorSpec) or (
        isinstance(spec, TrainableSpec) and spec.kind == "language"
    )
    if place == "cpu" or not bound:
        yield _with_resources(spec, 1, 0)
    if place == "cpu":
        return
    widest = max(node.gpus for node in machines.nodes)
    engine_gpus = [n for n in _ENGINE_GPUS if n <= widest]
    for each in engine_gpus if isinstance(spec, GeneratorSpec) else [1]:
        ranks = 1
        while ranks * each <= machines.gpus:
            yield _with_resources(spec, ranks, each)
            ranks *= 2


def _with_resources(spec: RoleSpec, ranks: int, gpus: int) -> RoleSpec:
    resources = spec.resources.model_copy(update={"ranks": ranks, "gpus_per_rank": gpus})
    return replace(spec, resources=resources)


def _with_training(spec: RoleSpec, training: Mapping[str, Any]) -> RoleSpec:
    if isinstance(spec, TrainableSpec):
        return replace(spec, training=spec.training.model_copy(update=dict(training)))
    if isinstance(spec, FrozenSpec) and "tokens_per_microbatch" in training:
        return replace(spec, tokens_per_microbatch=training["tokens_per_microbatch"])
    return spec


def _differences(
    before: Sequence[RoleSpec], after: Sequence[RoleSpec], section: str
) -> dict[str, Any]:
    """What to `--set` to come from one to the other."""
    settings: dict[str, Any] = {}
    for old, new in zip(before, after, strict=True):
        if isinstance(old, TrainableSpec) and isinstance(new, TrainableSpec):
            for name in ("zero_stage", "gradient_checkpointing", "tokens_per_microbatch"):
                if getattr(new.training, name) != getattr(old.training, name):
                    settings[f"{section}.{name}"] = getattr(new.training, name)
        for name in ("ranks", "gpus_per_rank"):
            if getattr(new.resources, name) != getattr(old.resources, name):
                settings[f"cluster.{new.name}.{name}"] = getattr(new.resources, name)
    return settings
