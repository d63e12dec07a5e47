"""Which role gets which processors: a plan, or a refusal with the numbers. Needs no Ray."""

from collections.abc import Sequence
from dataclasses import dataclass

from alignment.errors import ClusterError
from alignment.role_specs import GeneratorSpec, RoleSpec, TrainableSpec, shares_with


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCapacity:
    """What one machine has to give."""

    gpus: float
    cpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What one rank of one role holds: whole GPUs of one machine, and a share of CPUs."""

    role: str
    rank: int
    gpus: int
    cpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One bundle a rank, in the order of the specs and of the ranks."""

    bundles: tuple[Bundle, ...]

    def indices(self, role: str) -> list[int]:
        """Where the role's bundles are, by rank."""
        return [index for index, bundle in enumerate(self.bundles) if bundle.role == role]


def plan_placement(specs: Sequence[RoleSpec], nodes: Sequence[NodeCapacity]) -> Placement:
    """One bundle for every rank, checked against the machines.

    Raises:
        ClusterError: the roles do not fit (gives the numbers), two share a name, or a policy and
            its rollout engines are not on the same kind of processor, or a reference is to be
            answered by a policy that is not its base with adapters.
    """
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise ClusterError(f"role names must differ; got {', '.join(names)}")
    bundles = tuple(
        Bundle(
            role=spec.name,
            rank=rank,
            gpus=spec.resources.gpus_per_rank,
            cpus=spec.resources.cpus_per_rank,
        )
        for spec in specs
        if shares_with(spec) is None
        for rank in range(spec.resources.ranks)
    )
    _check_weight_path(specs)
    _check_shared_processes(specs)
    _check_total(bundles, nodes)
    assign_nodes(bundles, nodes)
    return Placement(bundles=bundles)


def _check_weight_path(specs: Sequence[RoleSpec]) -> None:
    """Weights go from GPU to GPU or from memory to memory, never across."""
    policies = [s for s in specs if isinstance(s, TrainableSpec) and s.kind == "language"]
    generators = [s for s in specs if isinstance(s, GeneratorSpec)]
    for policy in policies:
        for generator in generators:
            if bool(policy.resources.gpus_per_rank) != bool(generator.resources.gpus_per_rank):
                raise ClusterError(
                    f"{policy.name} has {policy.resources.gpus_per_rank} GPUs a rank and "
                    f"{generator.name} has {generator.resources.gpus_per_rank}: weights travel "
                    "from GPU to GPU or from memory to memory; set `gpus_per_rank` of both, or "
                    "of neither"
                )


def _check_shared_processes(specs: Sequence[RoleSpec]) -> None:
    """A policy with its adapters off is the reference only if both start from the same folder."""
    policies = {s.name: s for s in specs if isinstance(s, TrainableSpec) and s.kind == "language"}
    for spec in specs:
        host = shares_with(spec)
        if host is None:
            continue
        policy = policies.get(host)
        if policy is None or policy.training.lora is None:
            raise ClusterError(
                f"{spec.name} is to be answered by {host} with its adapters off, but {host} is "
                f"{'not started with it' if policy is None else 'trained without LoRA'}; give "
                f"{spec.name} processes of its own"
            )
        if policy.model_folder != spec.model_folder:
            raise ClusterError(
                f"{spec.name} is {spec.model_folder}, but {host} with its adapters off is "
                f"{policy.model_folder}; give {spec.name} processes of its own"
            )


def _check_total(bundles: Sequence[Bundle], nodes: Sequence[NodeCapacity]) -> None:
    for unit, setting in (("gpus", "gpus_per_rank"), ("cpus", "cpus_per_rank")):
        available = sum(getattr(node, unit) for node in nodes)
        wanted = _wanted_by_role(bundles, unit)
        total = sum(wanted.values())
        if total > available + 1e-9:
            sums = " + ".join(f"{role} {number_text(n)}" for role, n in wanted.items() if n)
            raise ClusterError(
                f"{sums} = {number_text(total)} {unit.upper()[:-1]}s wanted, "
                f"{number_text(available)} in the cluster; lower `ranks` or `{setting}` in "
                "`[cluster]`, or add machines"
            )


def assign_nodes(bundles: Sequence[Bundle], nodes: Sequence[NodeCapacity]) -> tuple[int, ...]:
    """Index of the machine of each bundle: first fit, largest first.

    Raises:
        ClusterError: a rank's GPUs and CPUs are not free on any one machine.
    """
    free = [[node.gpus, node.cpus] for node in nodes]
    chosen = [0] * len(bundles)
    order = sorted(range(len(bundles)), key=lambda i: (-bundles[i].gpus, -bundles[i].cpus))
    for index in order:
        bundle = bundles[index]
        for number, node in enumerate(free):
            if node[0] >= bundle.gpus and node[1] >= bundle.cpus - 1e-9:
                node[0] -= bundle.gpus
                node[1] -= bundle.cpus
                chosen[index] = number
                break
        else:
            left = ", ".join(f"{number_text(g)} GPUs + {number_text(c)} CPUs" for g, c in free)
            raise ClusterError(
                f"{bundle.role} rank {bundle.rank} wants {bundle.gpus} GPUs and "
                f"{number_text(bundle.cpus)} CPUs on one machine; with the larger ranks placed, "
                f"the machines have {left} left; lower `cluster.{bundle.role}.gpus_per_rank` or "
                "`cpus_per_rank`"
            )
    return tuple(chosen)


def _wanted_by_role(bundles: Sequence[Bundle], unit: str) -> dict[str, float]:
    wanted: dict[str, float] = {}
    for bundle in bundles:
        wanted[bundle.role] = wanted.get(bundle.role, 0.0) + getattr(bundle, unit)
    return wanted


def number_text(value: float) -> str:
    """At most three decimals, none where there are none."""
    return f"{round(value, 3):g}"
