"""A whole plan: every role of every stage against the machines, and the time of a PPO step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from alignment.config import ClusterConfig
from alignment.errors import ClusterError
from alignment.planning import calibration as known
from alignment.planning.machines import GIB, Machines, Node
from alignment.planning.memory import BatchSizes, RoleMemory, role_memory
from alignment.planning.model_shapes import ModelShape
from alignment.planning.placement import assign_nodes, plan_placement
from alignment.role_specs import GeneratorSpec, RoleSpec, TrainableSpec, shares_with

Verdict = Literal["fits", "tight", "too large"]
TIGHT_SHARE = 0.9
"""Above this share of a memory a plan may fail on what no formula counts, e.g. fragmentation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRequest:
    """The roles a stage starts together, with model shape and largest batch of each by name."""

    stage: str
    specs: tuple[RoleSpec, ...]
    shapes: Mapping[str, ModelShape]
    batches: Mapping[str, BatchSizes]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleFit:
    """A role against the memory of each of its GPUs; without GPUs only its machine counts."""

    memory: RoleMemory
    available: int | None
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFit:
    """System memory of one machine: what the roles placed there take, beside the driver."""

    node: str
    roles: tuple[str, ...]
    used: int
    certain: int
    available: int | None
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage: its roles, the machines they land on, and why they cannot be placed if so."""

    stage: str
    roles: tuple[RoleFit, ...]
    nodes: tuple[NodeFit, ...]
    refusal: str | None = None

    @property
    def verdict(self) -> Verdict:
        """The worst of its parts."""
        parts = {fit.verdict for fit in self.roles} | {fit.verdict for fit in self.nodes}
        if self.refusal or "too large" in parts:
            return "too large"
        return "tight" if "tight" in parts else "fits"


def plan_stage(request: StageRequest, cluster: ClusterConfig, machines: Machines) -> StagePlan:
    """The stage's memory and placement on the machines."""
    publishes = _publishes(request.specs)
    readers = _readers(request.specs) if len(machines.nodes) == 1 else 0
    memories = {
        spec.name: role_memory(
            spec,
            request.shapes[spec.name],
            request.batches[spec.name],
            cluster,
            machines.gpu if spec.resources.gpus_per_rank else None,
            publishes=publishes,
            readers=readers,
        )
        for spec in request.specs
        if shares_with(spec) is None and not (spec.resources.gpus_per_rank and machines.gpu is None)
    }
    roles = tuple(_role_fit(memory, cluster, machines) for memory in memories.values())
    try:
        nodes = _node_fits(request, memories, machines)
    except ClusterError as error:
        return StagePlan(stage=request.stage, roles=roles, nodes=(), refusal=str(error))
    return StagePlan(stage=request.stage, roles=roles, nodes=nodes)


def require_room(stages: Sequence[StagePlan]) -> None:
    """Refuse what surely does not fit, whatever the batches are.

    Raises:
        ClusterError: roles cannot be placed, a role's weights and optimiser alone exceed its GPU,
            or those of all roles on a machine its memory; names role, need, memory and remedy.
    """
    for stage in stages:
        if stage.refusal:
            raise ClusterError(f"stage {stage.stage}: {stage.refusal}")
        for fit in stage.roles:
            least = max(fit.memory.certain, fit.memory.start)
            if fit.available is not None and least > fit.available:
                raise ClusterError(_role_refusal(stage.stage, fit.memory, least, fit.available))
        for node in stage.nodes:
            if node.available is not None and node.certain > node.available:
                raise ClusterError(_node_refusal(stage, node, node.available))


def tight_places(stages: Sequence[StagePlan]) -> list[str]:
    """One sentence for each place where memory may run out, though it need not."""
    told = []
    for stage in stages:
        for fit in stage.roles:
            if fit.verdict != "fits" and fit.available is not None:
                told.append(
                    f"stage {stage.stage}: {fit.memory.role} is predicted to take "
                    f"{gib_text(fit.memory.needed)} of {gib_text(fit.available)} on each GPU"
                )
        for node in stage.nodes:
            if node.verdict != "fits" and node.available is not None:
                told.append(
                    f"stage {stage.stage}: {', '.join(node.roles)} are predicted to take "
                    f"{gib_text(node.used)} of {gib_text(node.available)} on {node.node}"
                )
    return told


def gib_text(size: float) -> str:
    """Bytes for people: `12.3 GiB`."""
    return f"{size / GIB:.1f} GiB" if size >= 0.1 * GIB else f"{size / known.MIB:.0f} MiB"


def _publishes(specs: Sequence[RoleSpec]) -> bool:
    """A stage that trains a language model beside a rollout engine sends it weights."""
    trained = any(isinstance(s, TrainableSpec) and s.kind == "language" for s in specs)
    return trained and any(isinstance(s, GeneratorSpec) for s in specs)


def _readers(specs: Sequence[RoleSpec]) -> int:
    """Engines on one host that read the policy's weights in its memory; see
    `alignment.cluster.lent_weights`.
    """
    engines = [spec for spec in specs if isinstance(spec, GeneratorSpec)]
    lent = [
        spec
        for spec in specs
        if isinstance(spec, TrainableSpec)
        and spec.kind == "language"
        and spec.training.zero_stage == 0
        and spec.training.lora is None
    ]
    on_gpus = [spec.resources.gpus_per_rank for spec in engines]
    on_gpus += [spec.resources.gpus_per_rank for spec in lent]
    if not lent or any(on_gpus):
        return 0
    return sum(spec.resources.ranks for spec in engines)


def _role_fit(memory: RoleMemory, cluster: ClusterConfig, machines: Machines) -> RoleFit:
    gpu = machines.gpu
    if not memory.gpus or gpu is None:
        return RoleFit(memory=memory, available=None, verdict="fits")
    if memory.role == "generator":  # vLLM takes its share whole, so being full is no risk
        available = int(cluster.gpu_memory_fraction * gpu.memory)
        least = memory.start
    else:
        available, least = gpu.memory, memory.needed
    return RoleFit(memory=memory, available=available, verdict=_verdict(least, available))


def _node_fits(
    request: StageRequest, memories: Mapping[str, RoleMemory], machines: Machines
) -> tuple[NodeFit, ...]:
    capacities = [node.capacity for node in machines.nodes]
    placement = plan_placement(request.specs, capacities)
    chosen = assign_nodes(placement.bundles, capacities)
    fits = []
    for index, node in enumerate(machines.nodes):
        roles = [
            bundle.role
            for bundle, at in zip(placement.bundles, chosen, strict=True)
            if at == index and bundle.role in memories
        ]
        if roles:
            fits.append(_node_fit(node, [memories[role] for role in roles], first=index == 0))
    return tuple(fits)


def _node_fit(node: Node, memories: Sequence[RoleMemory], *, first: bool) -> NodeFit:
    used = sum(m.host if m.gpus else m.needed for m in memories)
    certain = sum(m.certain for m in memories if not m.gpus)
    used += known.DRIVER_BYTES if first else 0
    return NodeFit(
        node=node.name,
        roles=tuple(dict.fromkeys(m.role for m in memories)),
        used=used,
        certain=certain,
        available=node.memory,
        verdict="fits" if node.memory is None else _verdict(used, node.memory),
    )


def _verdict(needed: int, available: int) -> Verdict:
    if needed > available:
        return "too large"
    return "tight" if needed > TIGHT_SHARE * available else "fits"


def _role_refusal(stage: str, memory: RoleMemory, least: int, available: int) -> str:
    if least == memory.start > memory.certain and memory.optimizer:
        what = "its whole float32 model, which each rank loads before it is sharded,"
        remedy = "use a smaller model or GPUs with more memory"
    elif memory.optimizer:
        what = "weights, gradients and optimiser state"
        remedy = (
            f"raise `cluster.{memory.role}.ranks` and set `zero_stage` to 2 or 3, use a smaller "
            "model, or GPUs with more memory"
        )
    elif memory.role == "generator":
        what = "weights and one sequence's cache"
        remedy = (
            "raise `cluster.generator.gpus_per_rank` (tensor parallel) or "
            '`cluster.gpu_memory_fraction`, or set `cluster.generator_precision` to "bfloat16"'
        )
    else:
        what = "weights in float32"
        remedy = (
            f"set `cluster.{memory.role}.gpus_per_rank` to 0 to keep it in system memory, use a "
            "smaller model, or GPUs with more memory"
        )
    return (
        f"stage {stage}: {memory.role} needs at least {gib_text(least)} on each GPU for {what} and "
        f"{gib_text(available)} are available; {remedy}. `alignflow plan` shows the parts and what "
        "would fit"
    )


def _node_refusal(stage: StagePlan, node: NodeFit, available: int) -> str:
    sizes = {f.memory.role: f.memory.certain * f.memory.ranks for f in stage.roles}
    here = {role: sizes[role] for role in node.roles if sizes[role]}
    largest = max(here, key=lambda role: here[role])
    parts = " + ".join(f"{role} {gib_text(size)}" for role, size in here.items())
    return (
        f"stage {stage.stage}: {largest} and the roles beside it need at least "
        f"{gib_text(node.certain)} of system memory on {node.node} ({parts}) for weights, "
        f"gradients, optimiser state and KV cache, and {gib_text(available)} are available; use a "
        f"smaller model, give {largest} GPUs (`cluster.{_section(largest)}.gpus_per_rank`), or "
        "more memory. `alignflow plan` shows the parts and what would fit"
    )


def _section(role: str) -> str:
    """The `[cluster]` entry that decides a role's resources."""
    return "policy" if role == "sft" else role
