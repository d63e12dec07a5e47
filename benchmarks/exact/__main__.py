"""`make bench-exact`: every method, coefficient and seed; a table, curves, and a verdict.

Ends with code 1 if PPO or RLOO stay below the goal at any coefficient on the median seed.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

from benchmarks.exact.methods import ALL_METHODS, BETAS, Outcome, run_method

GOAL = 0.98
MUST_REACH = ("ppo", "rloo")


def main() -> int:
    """Run, write `results.json`, `table.md` and `curves.png`, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=list(ALL_METHODS), choices=ALL_METHODS)
    parser.add_argument("--betas", nargs="+", type=float, default=list(BETAS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("build/bench-exact"))
    chosen = parser.parse_args()
    started = time.monotonic()
    jobs = [
        (method, beta, seed)
        for method in chosen.methods
        for seed in range(chosen.seeds)
        for beta in chosen.betas
    ]
    outcomes = []
    with ProcessPoolExecutor(chosen.processes, mp_context=get_context("spawn")) as pool:
        for outcome in pool.map(run_method, *zip(*jobs, strict=True)):
            outcomes.append(outcome)
            print(
                f"[{len(outcomes)}/{len(jobs)}] {outcome.method} beta {outcome.beta:g} seed "
                f"{outcome.seed}: {outcome.shared[-1][1]:.4f} ({outcome.seconds:.0f} s)",
                flush=True,
            )
    chosen.out.mkdir(parents=True, exist_ok=True)
    text = table(outcomes) + (
        f"\n{chosen.seeds} seeds, {time.monotonic() - started:.0f} s with {chosen.processes} "
        f"processes on {os.cpu_count()} cores.\n"
    )
    (chosen.out / "table.md").write_text(text, encoding="utf-8")
    (chosen.out / "results.json").write_text(json.dumps([asdict(o) for o in outcomes]))
    draw(outcomes, chosen.out / "curves.png")
    print(f"\n{text}\nwritten to {chosen.out}")
    missed = [
        f"{method} at beta {beta:g}: {middle(group):.4f}"
        for (method, beta), group in grouped(outcomes).items()
        if method in MUST_REACH and middle(group) < GOAL
    ]
    print("\n".join(f"below {GOAL}: {line}" for line in missed) or "every goal was reached")
    return 1 if missed else 0


def grouped(outcomes: Sequence[Outcome]) -> dict[tuple[str, float], list[Outcome]]:
    """Outcomes of all seeds by method and coefficient, in the order they came."""
    groups: dict[tuple[str, float], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.method, outcome.beta), []).append(outcome)
    return groups


def middle(group: Sequence[Outcome]) -> float:
    """Median over seeds of how far the method came."""
    return statistics.median(outcome.shared[-1][1] for outcome in group)


def table(outcomes: Sequence[Outcome]) -> str:
    """Medians over seeds, with the range of the first column."""
    lines = [
        "| method | beta / sd(r) | of the shared optimum: median (lowest to highest) | of its own "
        "optimum | shared value of its own optimum |",
        "|---|---|---|---|---|",
    ]
    for (method, beta), group in grouped(outcomes).items():
        shared = sorted(outcome.shared[-1][1] for outcome in group)
        own = statistics.median(outcome.own[-1][1] for outcome in group)
        at_own = statistics.median(outcome.at_own for outcome in group)
        lines.append(
            f"| {method} | {beta:g} | {middle(group):.4f} ({shared[0]:.4f} to {shared[-1]:.4f}) | "
            f"{own:.4f} | {at_own:.4f} |"
        )
    return "\n".join(lines) + "\n"


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """One panel a coefficient: share of the shared optimum over optimiser steps, every seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = grouped(outcomes)
    betas = sorted({beta for _, beta in groups})
    methods = list(dict.fromkeys(method for method, _ in groups))
    figure, panels = pyplot.subplots(1, len(betas), figsize=(5 * len(betas), 4), squeeze=False)
    for panel, beta in zip(panels[0], betas, strict=True):
        for index, method in enumerate(methods):
            for outcome in groups.get((method, beta), []):
                last = outcome.shared[-1][0]
                panel.plot(
                    [step / last for step, _ in outcome.shared],
                    [value for _, value in outcome.shared],
                    color=f"C{index}",
                    alpha=0.6,
                    label=method if outcome.seed == 0 else None,
                )
        panel.axhline(GOAL, color="grey", linewidth=0.8, linestyle=":")
        panel.set(ylim=(0, 1.02), title=f"beta = {beta:g} sd(r)", xlabel="share of training")
    panels[0][0].set_ylabel("(J - J_ref) / (J* - J_ref)")
    panels[0][-1].legend(loc="lower right", fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
