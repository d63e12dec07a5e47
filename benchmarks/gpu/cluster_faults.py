"""What a user sees where a GPU is not there, is full, or its process is killed."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from alignment.config import RoleResources
from alignment.errors import AlignmentError
from alignment.experience import batch_from_rows
from alignment.training.sft import demonstration_loss
from benchmarks.gpu.cluster_checks import Bench, gpu_memory_mib, largest

TOO_LONG_A_ROW = 2**18
"""Tokens: activations of some 0.4 TB at 0.5B parameters."""
FREE_WITHIN_S = 20.0
SETTLES_IN_S = 1.0
SLACK_MIB = 64
"""By how much memory in use may differ before it counts as taken."""


def check_no_room(bench: Bench) -> dict[str, Any]:
    """More ranks than there are GPUs."""
    wanted = RoleResources(ranks=2, gpus_per_rank=1)
    spec = replace(bench.trainable(), resources=wanted)
    told = _refusal(lambda: bench.cluster.start_roles([spec]))
    return {"told": told, "passed": "policy" in told and "GPU" in told}


def check_kill_and_full_gpu(bench: Bench) -> dict[str, Any]:
    """A killed actor is named, gives its GPU back and starts again; then its GPU is filled."""
    spec, batch = bench.trainable(precision="bfloat16"), bench.few_rows()
    free = _settled_gpu_memory_mib()
    with bench.started(spec) as role:
        answers, held = role.logprobs(batch), gpu_memory_mib()
        [facts] = role.describe()
        os.kill(facts["pid"], signal.SIGKILL)
        told = _refusal(lambda: role.logprobs(batch))
        began = time.perf_counter()
        while gpu_memory_mib() > free + SLACK_MIB and time.perf_counter() - began < FREE_WITHIN_S:
            time.sleep(0.1)
        figures: dict[str, Any] = {
            "told": told,
            "gpu_memory_mib": {"before": free, "held": held, "after": gpu_memory_mib()},
            "free_after_s": time.perf_counter() - began,
        }
    with bench.started(spec) as role:
        figures["answers_of_the_next"] = largest(role.logprobs(batch), answers)
        passed = figures["answers_of_the_next"] == 0.0 and f"process {facts['pid']}" in told
        passed &= figures["gpu_memory_mib"]["after"] <= free + SLACK_MIB
        if bench.gpus:
            full = _fill_gpu(role)
            figures |= {"full": full, "answers_after": largest(role.logprobs(batch), answers)}
            passed &= "policy rank 0" in full and "forward_backward" in full
            passed &= "memory" in full and figures["answers_after"] == 0.0
    return {**figures, "passed": passed}


def _settled_gpu_memory_mib() -> float:
    """Memory in use once the roles that were ended before have gone."""
    before, now = -1.0, gpu_memory_mib()
    while now != before:
        time.sleep(SETTLES_IN_S)
        before, now = now, gpu_memory_mib()
    return now


def _fill_gpu(role: Any) -> str:
    """What is told about one row that no GPU can hold."""
    row = torch.randint(1000, (TOO_LONG_A_ROW,), generator=torch.Generator().manual_seed(0))
    batch = batch_from_rows([row[:1].tolist()], [row[1:].tolist()])
    return _refusal(lambda: role.forward_backward(batch, demonstration_loss, denominator=1.0))


def _refusal(call: Callable[[], Any]) -> str:
    """The message that the call ends with."""
    try:
        call()
    except AlignmentError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"
