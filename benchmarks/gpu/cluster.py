"""`python -m benchmarks.gpu.cluster`: the roles as Ray actors on one GPU, and what Ray costs.

Opens a private Ray twice. Each role's numbers are held to those of the same role in this process
on the CPU; a checkpoint, an export, a killed actor, a full GPU and a GPU that is not there are
tried; a step through Ray is timed against the same step called directly, and the planned memory
compared with what torch held. Last come ZeRO 1 to 3 with one rank against ZeRO 0.

Models are drawn at random, so nothing is downloaded. Needs what `benchmarks.gpu` needs, and Ray
(jsonschema, referencing, rpds-py); where vLLM is installed, its samples are checked too.
`--tiny --gpus 0` tries all of it on any machine, without what only a GPU can show.
"""

import argparse
import json
import os
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from alignment.cluster import Cluster
from alignment.cluster.process_identity import processes_naming
from alignment.config import ClusterConfig
from alignment.exactness import arithmetic_facts
from benchmarks.gpu.__main__ import facts_of
from benchmarks.gpu.cluster_checks import CHECKS, Bench, Check, check_zero_stages, gpu_memory_mib
from benchmarks.gpu.cluster_faults import check_kill_and_full_gpu, check_no_room
from benchmarks.gpu.models import SIZES, language_model

CLOSES_WITHIN_S = 20.0
"""A process that was told to end may take this long."""


def main() -> None:
    """Check, measure, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the check itself")
    parser.add_argument("--gpus", type=int, default=1, choices=[0, 1], help="a rank's GPUs")
    parser.add_argument("--budget-s", type=float, default=220.0, help="begin no check after this")
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="e.g. transport; all if absent")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    name = "tiny" if chosen.tiny else "qwen2.5-0.5b"
    device = torch.device("cuda" if chosen.gpus else "cpu")
    record: dict[str, Any] = {"gpu_memory_at_first_mib": gpu_memory_mib(), "checks": []}
    arithmetic_facts()
    record["gpu_memory_of_the_driver_mib"] = gpu_memory_mib() - record["gpu_memory_at_first_mib"]
    record |= {**facts_of(device), "model": name, "gpus": chosen.gpus}
    ends_at = time.perf_counter() + chosen.budget_s
    with tempfile.TemporaryDirectory() as work:
        model = Path(work) / "model"
        model.mkdir()
        language_model(SIZES[name].shape, torch.device("cpu")).save(model)
        made = {"model": model, "work": Path(work), "size": SIZES[name], "gpus": chosen.gpus}
        first = [check_no_room, *CHECKS, *_with_vllm(), check_kill_and_full_gpu]
        for checks in (first, [check_zero_stages]):
            asked = [
                check for check in checks if chosen.only is None or _name(check) in chosen.only
            ]
            if asked:
                _on_a_cluster(asked, made, record, ends_at)
            _write(record, chosen.out)
    failed = [check["check"] for check in record["checks"] if not check["passed"]]
    print(json.dumps(record), flush=True)
    print(f"{len(record['checks'])} checks, failed: {', '.join(failed) or 'none'}", flush=True)


def _with_vllm() -> list[Check]:
    """What needs vLLM, where it is installed."""
    if find_spec("vllm") is None:
        return []
    from benchmarks.gpu.cluster_rollouts import check_rollouts

    return [check_rollouts]


def _on_a_cluster(
    checks: Sequence[Check], made: dict[str, Any], record: dict[str, Any], ends_at: float
) -> None:
    """The checks on a cluster of their own, and what it leaves."""
    config = ClusterConfig(threads=max(1, (os.cpu_count() or 1) // 2), object_store_gib=1.0)
    shared, at_first = set(os.listdir("/dev/shm")), gpu_memory_mib()
    with Cluster.open(config, log_folder=made["work"] / "logs") as cluster:
        scratch = cluster.scratch.parent
        bench = Bench(cluster=cluster, **made)
        for check in checks:
            if time.perf_counter() > ends_at:
                _tell(record, _name(check), {"passed": False, "error": "no time left"})
                continue
            with _timed(record, _name(check)) as figures:
                figures |= check(bench)
        held_here = torch.cuda.memory_reserved() / 2**20 if made["gpus"] else 0.0
    with _timed(record, "nothing left") as figures:
        figures |= _left(scratch, shared)
        figures |= {"gpu_memory_mib": [at_first, gpu_memory_mib()], "held_here_mib": held_here}


def _left(scratch: Path, shared_before: set[str]) -> dict[str, Any]:
    """Processes, folders and shared memory of a cluster that has closed."""
    began = time.perf_counter()
    while processes_naming(scratch) and time.perf_counter() - began < CLOSES_WITHIN_S:
        time.sleep(0.1)
    left = {
        "processes": [process.pid for process in processes_naming(scratch)],
        "folders": [str(scratch)] if scratch.exists() else [],
        "shared_memory": sorted(set(os.listdir("/dev/shm")) - shared_before),
    }
    return {**left, "passed": not any(left.values())}


@contextmanager
def _timed(record: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """A check's figures; one that breaks off has failed, and the others go on."""
    figures: dict[str, Any] = {}
    began = time.perf_counter()
    try:
        yield figures
    except Exception as error:
        traceback.print_exc()
        figures |= {"passed": False, "error": f"{type(error).__name__}: {error}"}
    _tell(record, name, {**figures, "seconds": time.perf_counter() - began})


def _name(check: Check) -> str:
    return check.__name__.removeprefix("check_")


def _tell(record: dict[str, Any], name: str, figures: dict[str, Any]) -> None:
    check = {"check": name, **figures}
    record["checks"].append(check)
    print("passed" if check["passed"] else "FAILED", json.dumps(check), flush=True)


def _write(record: dict[str, Any], path: Path | None) -> None:
    if path:
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
