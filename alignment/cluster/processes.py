"""Facts about the process an actor lives in, and the environment it starts with."""

import ctypes
import os
import socket
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import ray
import torch

from alignment.cluster.process_identity import identity_of
from alignment.code_digest import code_digest
from alignment.errors import ClusterError
from alignment.exactness import arithmetic_facts

CPU_MEMORY = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0"
    ":glibc.malloc.trim_threshold=1073741824"
}
"""Weights and activations in pages of 2 MiB, where the system gives them: fewer faults, and fewer
look-ups for an engine that reads all its weights for each token. And keep freed activations, and
weights that an update replaces, instead of returning them to the system and faulting them in again:
150,000 page faults a training step become none (docs/log.md). See `gives_memory_back`."""

CPU_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "20000"}
"""Threads that wait sleep after about a millisecond: spinning on made a step ten times slower
beside one busy process, and sleeping at once a tenth slower where nothing else runs."""

EngineName = Literal["torch", "deepspeed", "vllm"]


def actor_environment(
    engine: EngineName, *, threads: int, gpus: int, scratch: Path
) -> dict[str, str]:
    """Environment variables an actor must have before its engine is imported.

    `scratch` is a folder that goes when the cluster closes: vLLM leaves files in TMPDIR.
    """
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # they would fill the end of a log that errors show
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not gpus:
        environment |= {"TMPDIR": str(scratch), **CPU_THREADS, **CPU_MEMORY}
    if engine == "deepspeed" and not gpus:
        environment["DS_ACCELERATOR"] = "cpu"
    if engine == "vllm":
        environment["VLLM_NO_USAGE_STATS"] = "1"
    if engine == "vllm" and not gpus:
        environment |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "TORCH_COMPILE_DISABLE": "1",  # one compiled helper of the sampler costs 13 s
        }
    return environment


MethodT = TypeVar("MethodT", bound=Callable[..., Any])


def gives_memory_back(method: MethodT) -> MethodT:
    """Return freed memory to the system when an actor's method ends, before another role needs it,
    unless the actor `keeps_memory`.
    """

    @wraps(method)
    def trimmed(actor: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return method(actor, *arguments, **named)
        finally:
            give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc keeps memory
            if give_back is not None and not getattr(actor, "keeps_memory", False):
                give_back(0)

    return cast(MethodT, trimmed)


def actor_device(role: str, rank: int, *, gpus: int) -> torch.device:
    """Where a rank computes.

    Raises:
        ClusterError: the rank holds GPUs that torch cannot use.
    """
    if not gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ClusterError(
            f"{role} rank {rank} was given GPU {os.environ.get('CUDA_VISIBLE_DEVICES')}, but torch "
            f"{torch.__version__} sees no CUDA device; install requirements/gpu.txt, or set "
            f"`cluster.{role}.gpus_per_rank` to 0"
        )
    return torch.device("cuda", 0)


def describe_process() -> dict[str, Any]:
    """Host, process, visible GPUs, and memory in MiB.

    `memory_mib` is PSS: a shared page is split by its users. `gpu_memory_mib` is the most that
    torch's tensors took so far; None before the process uses a GPU.
    """
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process": identity_of(os.getpid()),
        "ray": ray.__version__,
        "code": code_digest(),
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "threads": torch.get_num_threads(),
        "memory_mib": _proportional_set_size_mib(),
        "gpu_memory_mib": _gpu_memory_mib(),
        "exactness": arithmetic_facts(),
    }


def _gpu_memory_mib() -> float | None:
    if not torch.cuda.is_initialized():
        return None
    return torch.cuda.max_memory_allocated() / 2**20


def _proportional_set_size_mib() -> float | None:
    try:
        text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return None
    kib = next(line.split()[1] for line in text.splitlines() if line.startswith("Pss:"))
    return int(kib) / 1024
