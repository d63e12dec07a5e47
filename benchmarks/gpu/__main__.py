"""`python -m benchmarks.gpu`: how fast training is on one GPU, and whether packing is exact.

Models are drawn at random, so nothing is downloaded; neither Ray nor vLLM is needed. Prints a
table and one line of JSON, which also goes to `--out`. `--tiny` runs all of it on any machine.
Beyond torch, transformers and numpy it imports deepspeed (hjson, msgpack, einops, psutil, tqdm,
py-cpuinfo), pydantic (pydantic-core, annotated-types, typing-inspection, typing-extensions) and
jaxtyping; without deepspeed it takes plain torch and says so.
"""

import argparse
import json
import platform
import statistics
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from alignment.config import Precision
from alignment.models import row_attention
from benchmarks.gpu.checks import check_losses
from benchmarks.gpu.measure import compare_ways, measure_model, product_rate, profile_model
from benchmarks.gpu.models import SIZES
from benchmarks.operations import weighted_rate

USUAL_MODELS = ["qwen2.5-0.5b", "qwen2.5-1.5b"]
PPO_PHASES = ("logprobs", "logprobs", "score", "values", "update_policy", "update_critic")
"""The training side of a step; policy and reference both say log-probabilities."""


def main() -> None:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the bench itself")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--engine", default="auto", choices=["auto", "deepspeed", "torch"])
    parser.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--models", nargs="+", choices=list(SIZES), default=USUAL_MODELS)
    parser.add_argument("--budget-s", type=float, default=200.0, help="start no model after this")
    parser.add_argument("--profile", action="store_true", help="where the first model's time goes")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    device, precision = torch.device(chosen.device), chosen.precision
    began = time.perf_counter()
    record: dict[str, Any] = {**facts_of(device), "precision": precision, "phases": []}
    record["engine"], record["engine_note"] = _engine(chosen.engine)
    record["checks"] = list(check_losses(device))
    width = 256 if chosen.tiny else 8192
    record["product_flops"] = product_rate(device, precision, width=width)
    record["compared"], record["errors"] = [], []
    for name in ["tiny"] if chosen.tiny else chosen.models:
        if time.perf_counter() - began > chosen.budget_s:
            record["errors"].append(f"{name}: no time left")
            continue
        _measure(name, device, record, precision)
        _write(record, chosen.out)
    if chosen.profile:
        with _told("profile", record):
            size = SIZES["tiny" if chosen.tiny else "qwen2.5-0.5b"]
            print(profile_model(size, device, engine=record["engine"], precision=precision))
    record["seconds"] = time.perf_counter() - began
    _write(record, chosen.out)
    print("\n".join(table(record)), flush=True)
    print(json.dumps(record), flush=True)


def _measure(name: str, device: torch.device, record: dict[str, Any], precision: Precision) -> None:
    """One model; what fails is told and the rest is kept."""
    how: dict[str, Any] = {"engine": record["engine"], "precision": precision}
    with _told(f"{name}: rows at once", record):
        record["compared"] += list(compare_ways(SIZES[name], device))
    if record["errors"]:
        row_attention.AT_ONCE = ()
        with _told(f"{name}: row by row", record):
            record["compared"] += list(compare_ways(SIZES[name], device))
    for kind in ("language", "value"):
        with _told(f"{name}: {kind}", record):
            for phase in measure_model(SIZES[name], kind, device, **how):
                record["phases"].append(phase)
                said = {key: phase[key] for key in ("model", "phase", "packed", "seconds")}
                print(said, flush=True)


@contextmanager
def _told(what: str, record: dict[str, Any]) -> Iterator[None]:
    """A bench on borrowed time keeps what it has."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        record["errors"].append(f"{what}: {type(error).__name__}: {error}")


def table(record: Mapping[str, Any]) -> list[str]:
    """Lines of the phases, of PPO's training side together, and of the comparisons."""
    rate = record["product_flops"]
    lines = [
        f"{record['machine']}, torch {record['torch']}, {record['engine']}, {record['precision']}; "
        f"large matrix products {rate / 1e12:.3g} TFLOP/s",
        "",
        "| model | phase | rows | s | tokens/s | share of large products' rate | of its own | "
        "peak, GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for phase in record["phases"]:
        lines.append(_line(phase, statistics.median(phase["seconds"]), rate))
    for model in dict.fromkeys(phase["model"] for phase in record["phases"]):
        for packed in (True, False):
            found = {
                phase["phase"]: phase
                for phase in record["phases"]
                if (phase["model"], phase["packed"]) == (model, packed)
            }
            if set(PPO_PHASES) <= set(found):
                lines.append(_together([found[name] for name in PPO_PHASES], rate))
    lines += ["", "| packed against padded | precision | largest | mean |", "|---|---|---|---|"]
    for ways in record["compared"]:
        lines.append(
            f"| {ways['model']} | {ways['precision']} | {ways['max']:.2g} | {ways['mean']:.2g} |"
        )
    lines += ["", "| device against CPU | difference | |", "|---|---|---|"]
    for check in record["checks"]:
        verdict = "passed" if check["passed"] else "FAILED"
        lines.append(f"| {check['check']} | {check['difference']:.2g} | {verdict} |")
    return [*lines, "", *(f"ERROR {error}" for error in record["errors"])]


def _line(phase: Mapping[str, Any], seconds: float, rate: float) -> str:
    rows = "packed" if phase["packed"] else "padded"
    used = phase["operations"] / seconds
    return (
        f"| {phase['model']} | {phase['phase']} | {rows} | {seconds:.3g} | "
        f"{phase['tokens'] / seconds:,.0f} | {used / rate:.3f} | "
        f"{used / phase['own_product_flops']:.3f} | {phase['peak_gib']:.1f} |"
    )


def _together(phases: Sequence[Mapping[str, Any]], rate: float) -> str:
    seconds = sum(statistics.median(phase["seconds"]) for phase in phases)
    operations = [phase["operations"] for phase in phases]
    whole = {
        **phases[0],
        "phase": "PPO step without rollout",
        "operations": sum(operations),
        "own_product_flops": weighted_rate(
            operations, [phase["own_product_flops"] for phase in phases]
        ),
        "peak_gib": max(phase["peak_gib"] for phase in phases),
    }
    return _line(whole, seconds, rate)


def _engine(asked: str) -> tuple[str, str]:
    """Which engine to use; `auto` takes plain torch where DeepSpeed cannot be loaded."""
    if asked != "auto":
        return asked, ""
    try:
        import deepspeed
    except Exception as error:  # any failure of its import means the same here
        return "torch", f"deepspeed cannot be loaded: {type(error).__name__}: {error}"
    return "deepspeed", deepspeed.__version__


def facts_of(device: torch.device) -> dict[str, Any]:
    """The machine and the versions that figures belong to."""
    import transformers

    is_cuda = device.type == "cuda"
    return {
        "machine": torch.cuda.get_device_name(device) if is_cuda else platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "when": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }


def _write(record: Mapping[str, Any], path: Path | None) -> None:
    if path:
        path.write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
