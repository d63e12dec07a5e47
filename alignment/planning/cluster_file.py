"""Machines from a file in the format of Ray's cluster launcher (`ray up cluster.yaml`).

Read: `available_node_types.<type>.resources` (CPU, GPU, memory in bytes, `accelerator_type:X`),
its `max_workers`, the global `max_workers` and `head_node_type`. The launcher starts one head and
at most `max_workers` workers; a plan counts them all.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignment.errors import ConfigError
from alignment.planning.machines import GpuKind, Machines, Node, gpu_kind

_RAY_DEFAULT_WORKERS = 2


def read_cluster_file(path: Path, *, gpu: str | None = None) -> Machines:
    """The machines of a launcher file.

    Args:
        path: the YAML file.
        gpu: kind of GPU of the node types that do not name one.

    Raises:
        ConfigError: the file cannot be read, or a node type lacks what a plan needs; names file,
            field and what to write.
    """
    settings = _mapping(_load(path), path, "the file")
    types = _mapping(settings.get("available_node_types"), path, "`available_node_types`")
    head = settings.get("head_node_type", next(iter(types), None))
    if head not in types:
        raise ConfigError(
            f"{path}: `head_node_type` is {head!r}; accepted: {', '.join(map(str, types))}"
        )
    allowed = _count(settings.get("max_workers", _RAY_DEFAULT_WORKERS), path, "`max_workers`")
    nodes = [_node(str(head), _mapping(types[head], path, f"`{head}`"), path, gpu)]
    for name, settings_of_type in types.items():
        where = f"`available_node_types.{name}`"
        of_type = _mapping(settings_of_type, path, where)
        default = 0 if name == head else allowed
        wanted = _count(of_type.get("max_workers", default), path, f"{where}.max_workers")
        workers = min(wanted, allowed)
        allowed -= workers
        nodes += [_node(str(name), of_type, path, gpu)] * workers
    numbered = [replace(n, name=f"{n.name} {i}") for i, n in enumerate(nodes, 1)]
    return Machines(nodes=tuple(numbered if len(nodes) > 1 else nodes), source=str(path))


def _load(path: Path) -> Any:
    import yaml  # type: ignore[import-untyped, unused-ignore]

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"cluster file {path} does not exist") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())
        raise ConfigError(f"cluster file {path} is not valid YAML: {told}") from error


def _node(name: str, settings: Mapping[str, Any], path: Path, gpu: str | None) -> Node:
    where = f"`available_node_types.{name}.resources`"
    resources = _mapping(settings.get("resources"), path, where)
    gpus = _count(resources.get("GPU", 0), path, f"{where}.GPU")
    cpus = resources.get("CPU")
    if not isinstance(cpus, int | float) or isinstance(cpus, bool) or cpus <= 0:
        raise ConfigError(
            f"{path}: {where}.CPU is {cpus!r}; write the number of cores, e.g. `CPU: 16`"
        )
    memory = resources.get("memory")
    return Node(
        name=name,
        cpus=float(cpus),
        gpus=gpus,
        memory=None if memory is None else _count(memory, path, f"{where}.memory (bytes)"),
        gpu=_kind(resources, path, where, gpu) if gpus else None,
    )


def _kind(resources: Mapping[str, Any], path: Path, where: str, gpu: str | None) -> GpuKind:
    named = [str(key).partition(":")[2] for key in resources if "accelerator_type:" in str(key)]
    if not named and gpu is None:
        raise ConfigError(
            f"{path}: {where} has GPUs of an unknown kind; add e.g. "
            "`accelerator_type:A100-80G: 1` there, or name it with --gpu A100-80G"
        )
    return gpu_kind(named[0] if named else str(gpu))


def _mapping(value: Any, path: Path, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not value:
        raise ConfigError(f"{path}: {what} is {value!r}; expected named entries")
    return value


def _count(value: Any, path: Path, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"{path}: {what} is {value!r}; expected a whole number, 0 or more")
    return value
