"""`make bench`: training, rollouts, weight sync and batch size against the limits, as ratios.

The limit of a training step is what the process reaches when it does nothing but the step's own
matrix products. Every round is appended to a JSON-lines file; the table is of all rounds in it.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import sync
from benchmarks.limits.batches import measure_batches
from benchmarks.limits.ppo import measure_ppo
from benchmarks.limits.report import report
from benchmarks.limits.rollout import measure_rollout
from benchmarks.limits.training import measure_training
from benchmarks.ppo.workload import prepare_models

PARTS = ("sft", "reward_model", "ppo", "rollout", "sync", "batches")


def main() -> None:
    """Measure the chosen parts, append to the file of rounds, print the table of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sequences", type=int, nargs="+", default=[8, 48], help="sft, rm")
    parser.add_argument(
        "--precision", nargs="+", default=["float32", "bfloat16"], help="sft, reward_model"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--models", type=Path, default=Path("build/bench-ppo"))
    parser.add_argument("--kept", type=Path, default=Path("build/bench"))
    parser.add_argument("--report", action="store_true", help="only print the table")
    chosen = parser.parse_args()
    rounds = chosen.kept / "rounds.jsonl"
    if not chosen.report:
        os.environ.setdefault("RAY_worker_niceness", "0")  # else whatever runs beside comes first
        chosen.kept.mkdir(parents=True, exist_ok=True)
        models = prepare_models(chosen.models, fine_tuned=False)
        for part in chosen.part:
            for record in _measure(part, chosen, models):
                stamped = {"when": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), **record}
                print(stamped, flush=True)
                with rounds.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(stamped) + "\n")
    lines = rounds.read_text(encoding="utf-8").splitlines() if rounds.exists() else []
    print("\n".join(report([json.loads(line) for line in lines])))


def _measure(
    part: str, chosen: argparse.Namespace, models: tuple[Path, Path]
) -> Iterator[dict[str, Any]]:
    how = {"rounds": chosen.rounds, "threads": chosen.threads}
    if part == "sync":
        yield {"part": "sync", "seconds": sync.measure(str(models[0]), **how)}
        return
    whole = {"ppo": measure_ppo, "rollout": measure_rollout, "batches": measure_batches}
    if part in whole:
        with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
            yield from whole[part](models, Path(scratch), **how)
        return
    for precision in chosen.precision:
        for sequences in chosen.sequences:
            with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
                yield from measure_training(
                    part,
                    models,
                    Path(scratch),
                    sequences=sequences,
                    precision=precision,
                    **how,
                )


if __name__ == "__main__":
    main()
