"""What machines have: cores, memory, GPUs and how fast those are."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from alignment.errors import ClusterError, ConfigError
from alignment.planning.placement import NodeCapacity

GIB = 2**30
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuKind:
    """A GPU by its data sheet: memory in bytes, dense operations and bytes a second."""

    name: str
    memory: int
    bfloat16_flops: float
    float32_flops: float
    memory_bandwidth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One machine. `memory` is its system memory in bytes; None where nobody said."""

    name: str
    cpus: float
    gpus: int = 0
    memory: int | None = None
    gpu: GpuKind | None = None

    @property
    def capacity(self) -> NodeCapacity:
        """What placement counts."""
        return NodeCapacity(gpus=self.gpus, cpus=self.cpus)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """The machines a plan is made for, and where they are known from."""

    nodes: tuple[Node, ...]
    source: str

    @property
    def gpus(self) -> int:
        """GPUs of all machines."""
        return sum(node.gpus for node in self.nodes)

    @property
    def gpu(self) -> GpuKind | None:
        """The GPU with the least memory: a role may land on any of them."""
        kinds = [node.gpu for node in self.nodes if node.gpus and node.gpu]
        return min(kinds, key=lambda kind: kind.memory) if kinds else None


def _gpu(name: str, gib: float, bfloat16: float, float32: float, bandwidth: float) -> GpuKind:
    return GpuKind(
        name=name,
        memory=int(gib * GIB),
        bfloat16_flops=bfloat16 * 1e12,
        float32_flops=float32 * 1e12,
        memory_bandwidth=bandwidth * 1e9,
    )


GPU_KINDS = {
    kind.name: kind
    for kind in (
        # NVIDIA data sheets: GiB that the driver reports, dense bf16 and fp32 Tflop/s, GB/s.
        # float32 is that of the CUDA cores, which torch uses unless told to use TF32.
        # V100 and T4 have no bf16: their fp16 rate stands there.
        _gpu("T4", 15.0, 65, 8.1, 320),
        _gpu("V100", 16.0, 125, 15.7, 900),
        _gpu("V100-32G", 32.0, 125, 15.7, 900),
        _gpu("A10G", 22.5, 70, 31.2, 600),
        _gpu("L4", 22.5, 121, 30.3, 300),
        _gpu("RTX4090", 24.0, 165, 82.6, 1008),
        _gpu("L40S", 45.0, 362, 91.6, 864),
        _gpu("A100-40G", 40.0, 312, 19.5, 1555),
        _gpu("A100-80G", 80.0, 312, 19.5, 2039),
        _gpu("A800", 80.0, 312, 19.5, 2039),
        _gpu("H20", 95.6, 148, 44, 4000),
        _gpu("H100", 79.6, 989, 67, 3350),
        _gpu("H200", 139.8, 989, 67, 4800),
    )
}
_ALIASES = {"A100": "A100-40G", "A100_80G": "A100-80G", "V100-16G": "V100"}


def gpu_kind(name: str) -> GpuKind:
    """The table's entry; names are those of Ray's `accelerator_type` where it has one.

    Raises:
        ConfigError: there is none; lists what there is.
    """
    wanted = name.upper().replace("RTX-", "RTX").removeprefix("NVIDIA-")
    kind = GPU_KINDS.get(_ALIASES.get(wanted, wanted))
    if kind is None:
        raise ConfigError(f"GPU {name!r} is not known; accepted: {', '.join(GPU_KINDS)}")
    return kind


def local_machine() -> Machines:
    """Cores, memory and visible GPUs of this machine, as a private Ray counts them."""
    sizes = _visible_gpu_memory()
    gpu = None
    if sizes:
        name, memory = min(sizes, key=lambda size: size[1])
        gpu = _kind_like(name, memory)
    node = Node(
        name="this machine",
        cpus=float(os.cpu_count() or 1),
        gpus=len(sizes),
        memory=system_memory(),
        gpu=gpu,
    )
    return Machines(nodes=(node,), source="this machine")


def system_memory() -> int:
    """Bytes of memory that processes here may use: the machine's, or a container's limit."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("MemTotal:"))
    limits = [kib * 1024]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():  # "max" where nothing is limited
            limits.append(int(text))
    return min(limits)


def _visible_gpu_memory() -> list[tuple[str, int]]:
    """Name and bytes of each NVIDIA GPU that CUDA_VISIBLE_DEVICES leaves visible."""
    program = shutil.which("nvidia-smi")
    if program is None or not any(Path("/dev").glob("nvidia[0-9]*")):
        return []
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        raise ClusterError(
            f"nvidia-smi does not tell the GPUs' memory: {error}; name the machines with "
            "`alignflow plan --cluster FILE`, or repair the driver"
        ) from error
    rows = [line.rsplit(",", 1) for line in answer.stdout.splitlines() if line.strip()]
    found = [(name.strip(), int(mib) * MIB) for name, mib in rows]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    named = [device for device in visible.split(",") if device.strip() not in ("", "-1")]
    return found[: len(named)]


def _kind_like(name: str, memory: int) -> GpuKind:
    """The table's speeds for a name such as 'NVIDIA A100-SXM4-80GB', with the real memory."""
    plain = name.upper().replace(" ", "").replace("GEFORCE", "")
    close = [kind for kind in GPU_KINDS.values() if kind.name.split("-")[0] in plain]
    close.sort(key=lambda kind: (-len(kind.name.split("-")[0]), abs(kind.memory - memory)))
    like = close[0] if close else GPU_KINDS["A100-80G"]
    return GpuKind(
        name=name,
        memory=memory,
        bfloat16_flops=like.bfloat16_flops,
        float32_flops=like.float32_flops,
        memory_bandwidth=like.memory_bandwidth,
    )
