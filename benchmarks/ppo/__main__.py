"""`make bench-ppo`: our PPO step against TRL's, in turns on the same machine.

Both sides stay loaded and take one step each in turn, after one step each that does not count.
Every round is appended to a JSON-lines file, so that pieces of a long run add up; the table at
the end is of all rounds in it. Prints, before anything is timed, the ratio that operations
alone predict: TRL's on its padded batch over ours on valid tokens.
"""

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment.planning.model_shapes import read_model_shape
from benchmarks.memory import Sampled
from benchmarks.operations import Sequences, predicted_ratio
from benchmarks.ppo.our_side import EnoughError, our_roles
from benchmarks.ppo.report import report
from benchmarks.ppo.trl_process import TrlProcess, trl_python, trl_trainer
from benchmarks.ppo.workload import KEPT_SHARE, VARIANTS, Variant, bench_prompts, prepare_models

KEPT = Path("build/bench-ppo")


def main() -> None:
    """Measure the chosen variants, append to the file of rounds, print the table of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1, help="steps of each side left uncounted")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", choices=["ours", "trl"], help="leave the other side out")
    parser.add_argument("--kept", type=Path, default=KEPT, help="folder of models and rounds")
    parser.add_argument("--report", action="store_true", help="only print the table")
    chosen = parser.parse_args()
    rounds = chosen.kept / "rounds.jsonl"
    if not chosen.report:
        os.environ.setdefault("RAY_worker_niceness", "0")  # else whatever runs beside comes first
        # Both sides stay loaded; Ray would end a role of ours at 95% of the machine's memory.
        os.environ.setdefault("RAY_memory_usage_threshold", "0.98")
        python = trl_python(chosen.kept / "trl")
        for name in chosen.variant:
            with tempfile.TemporaryDirectory(prefix="bench-ppo-") as scratch:
                _measure(VARIANTS[name], chosen, python, Path(scratch), rounds)
    print("\n".join(report(_read(rounds))))


def _measure(
    variant: Variant, chosen: argparse.Namespace, python: Path, scratch: Path, rounds: Path
) -> None:
    models = prepare_models(chosen.kept, fine_tuned=variant.fine_tuned)
    prompts = bench_prompts(models[0])
    steps, threads = chosen.warmup + chosen.rounds, chosen.threads
    with (
        trl_trainer(python, variant, prompts, models, scratch, threads=threads) as trl,
        our_roles(variant, models, scratch, threads=threads, steps=steps) as ours,
    ):
        lengths = ours.sample(prompts)
        facts = _facts(variant, lengths, models[0], threads)
        print(_announced(variant, facts), flush=True)
        measured: dict[str, Any] = {}
        memory = Sampled(ours.pids())  # of the steps that do not count: sampling costs time

        def after_step(step: int, metrics: Mapping[str, float]) -> None:
            nonlocal measured
            is_counted = step > chosen.warmup
            measured |= _of_ours(metrics, memory)
            if chosen.only != "ours":
                measured |= _of_trl(trl, sampled=not is_counted)
            if is_counted:
                _append(rounds, {**facts, **measured})
            print(_said(step, chosen.warmup, measured), flush=True)
            if step == steps:
                raise EnoughError
            if step < chosen.warmup:
                memory.start()

        if chosen.only == "trl":
            for _ in range(steps):
                print(f"trl {trl.step():.1f} s", flush=True)
            return
        if chosen.warmup:
            memory.start()
        ours.train(prompts, steps=steps + 1, after_step=after_step)


def _of_ours(metrics: Mapping[str, float], memory: Sampled) -> dict[str, Any]:
    """Our step's figures; ends a sampling of memory."""
    memory.stop()
    seconds = {name: value for name, value in metrics.items() if name.startswith("time/")}
    return {
        "ours": {name.removeprefix("time/"): value for name, value in seconds.items()},
        "ours_tokens": metrics["ppo/response_tokens_mean"],
        "ours_pss_gib": dict(memory.each),
        "ours_pss_sum_gib": memory.together,
    }


def _of_trl(trl: TrlProcess, *, sampled: bool) -> dict[str, Any]:
    """TRL's step; its memory where that is sampled."""
    if not sampled:
        return {"trl": trl.step()}
    memory = Sampled({"trl": trl.pid})
    memory.start()
    try:
        seconds = trl.step()
    finally:
        memory.stop()
    return {"trl": seconds, "trl_pss_gib": memory.each["trl"]}


def _facts(variant: Variant, lengths: Sequences, model: Path, threads: int) -> dict[str, Any]:
    return {
        "variant": variant.name,
        "predicted": predicted_ratio(
            read_model_shape(model),
            lengths,
            epochs=variant.epochs,
            asks_policy=variant.old_logprobs == "trainer",
            kept_share=KEPT_SHARE,
        ),
        "prompt_tokens": [sum(lengths.prompts) / len(lengths.prompts), max(lengths.prompts)],
        "response_tokens": [
            sum(lengths.responses) / len(lengths.responses),
            max(lengths.responses),
        ],
        "threads": threads,
        "when": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "machine": _machine(),
        "commit": _commit(),
    }


def _announced(variant: Variant, facts: Mapping[str, Any]) -> str:
    prompts, responses = facts["prompt_tokens"], facts["response_tokens"]
    return (
        f"{variant.name}: prompts {prompts[0]:.1f} tokens (longest {prompts[1]}), responses "
        f"{responses[0]:.1f} (longest {responses[1]}); predicted from operations: TRL takes "
        f"{facts['predicted']:.2f} times as long"
    )


def _said(step: int, warmup: int, measured: Mapping[str, Any]) -> str:
    kind = "warm-up" if step <= warmup else f"round {step - warmup}"
    ours, trl = measured["ours"], measured.get("trl")
    phases = ", ".join(f"{name[:-2]} {s:.1f}" for name, s in ours.items() if name != "step_s")
    ratio = f", TRL {trl:.1f} s, ratio {trl / ours['step_s']:.2f}" if trl else ""
    return f"{kind}: ours {ours['step_s']:.1f} s ({phases}){ratio}"


def _append(path: Path, record: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _machine() -> str:
    cpus = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in cpus if line.startswith("model name")]
    return f"{os.cpu_count()} x {names[0] if names else platform.machine()}"


def _commit() -> str:
    asked = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip()


if __name__ == "__main__":
    main()
