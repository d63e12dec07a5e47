"""The process group of a role's ranks, and the few collectives we add to DeepSpeed's."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist


def open_store(host: str, num_ranks: int, *, timeout_s: float) -> dist.TCPStore:
    """Rank 0's meeting point. It picks its own free port, so no port can be taken in between."""
    return dist.TCPStore(
        host,
        0,
        num_ranks,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
    )


def join_store(host: str, port: int, num_ranks: int, *, timeout_s: float) -> dist.TCPStore:
    """Another rank's connection to rank 0's meeting point."""
    return dist.TCPStore(
        host, port, num_ranks, is_master=False, timeout=timedelta(seconds=timeout_s)
    )


def start_process_group(
    store: dist.TCPStore, *, rank: int, num_ranks: int, device: torch.device, timeout_s: float
) -> None:
    """Initialise torch.distributed and DeepSpeed's view of it: gloo on CPU, nccl on GPU."""
    # DeepSpeed reads LOCAL_RANK; Ray shows each rank only its own GPUs, so it is always 0.
    os.environ["LOCAL_RANK"] = "0"
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=timeout_s),
    )
    _leave_out_shared_memory_operator()
    import deepspeed

    deepspeed.init_distributed(dist_backend=backend, verbose=False)


def _leave_out_shared_memory_operator() -> None:
    """DeepSpeed 0.19.8 compiles a C++ all-reduce on CPU, 55 s, even for gloo: leave it out.

    Only a saving of time: were the name gone in another version, training would start slower.
    """
    from deepspeed import ops

    compatible = getattr(ops, "__compatible_ops__", None)
    if isinstance(compatible, dict) and "deepspeed_shm_comm" in compatible:
        compatible["deepspeed_shm_comm"] = False


def largest_over_ranks(number: int, device: torch.device) -> int:
    """The largest of one whole number a rank; every rank must call it."""
    tensor = torch.tensor([number], dtype=torch.int64, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor)
