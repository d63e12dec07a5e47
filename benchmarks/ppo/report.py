"""The table of bench-ppo, from its rounds."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.operations import spread
from benchmarks.ppo.workload import VARIANTS

SHARE_OF_PREDICTION = 0.8
SHORT_TOKENS, SHORT_GOAL = 32, 2.5
LARGEST_ROLE, ALL_ROLES = 0.45, 1.2
"""Memory of one role and of all, at most this times that of TRL's process (float32)."""


def report(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Seconds, ratio with its spread, and verdict of each variant; then phases and memory."""
    lines = [
        "| variant | ours, s | TRL, s | TRL / ours | predicted | goal | |",
        "|---|---|---|---|---|---|---|",
    ]
    measured = {
        name: [r for r in rounds if r["variant"] == name and r.get("trl")] for name in VARIANTS
    }
    measured = {name: some for name, some in measured.items() if some}
    for name, some in measured.items():
        lines.append(_ratio_line(name, some))
    lines += ["", "| variant | phase of ours | s |", "|---|---|---|"]
    for name, some in measured.items():
        for phase in some[0]["ours"]:
            seconds = spread([r["ours"].get(phase, 0.0) for r in some])
            lines.append(f"| {name} | {phase.removesuffix('_s')} | {seconds} |")
    lines += [
        "",
        "| variant | process | PSS, GiB | of TRL's | goal | |",
        "|---|---|---|---|---|---|",
    ]
    for name, some in measured.items():
        lines += _memory_lines(name, some)
    return lines


def goal_of(name: str, rounds: Sequence[Mapping[str, Any]]) -> float | None:
    """The least ratio asked for: the variant's own, or a share of what was predicted."""
    variant = VARIANTS[name]
    if variant.goal is not None or variant.forced:
        return variant.goal
    tokens = spread([r["ours_tokens"] for r in rounds]).median
    predicted = SHARE_OF_PREDICTION * spread([r["predicted"] for r in rounds]).median
    return max(predicted, SHORT_GOAL) if tokens <= SHORT_TOKENS else predicted


def _ratio_line(name: str, rounds: Sequence[Mapping[str, Any]]) -> str:
    ours = spread([r["ours"]["step_s"] for r in rounds])
    trl = spread([r["trl"] for r in rounds])
    ratio = spread([r["trl"] / r["ours"]["step_s"] for r in rounds])
    predicted = spread([r["predicted"] for r in rounds]).median
    goal = goal_of(name, rounds)
    verdict = "" if goal is None else "met" if ratio.median >= goal else "MISSED"
    wanted = "" if goal is None else f">= {goal:.2f}"
    return f"| {name} | {ours} | {trl} | {ratio} | {predicted:.2f} | {wanted} | {verdict} |"


def _memory_lines(name: str, rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    trl = max(r["trl_pss_gib"] for r in rounds)
    lines = [f"| {name} | TRL | {trl:.2f} | | | |"]
    each: dict[str, float] = {}
    for r in rounds:
        for role, size in r["ours_pss_gib"].items():
            each[role] = max(size, each.get(role, 0.0))
    together = max(r["ours_pss_sum_gib"] for r in rounds)
    judged = VARIANTS[name].precision == "float32"
    for role, size, limit in [
        *((role, size, LARGEST_ROLE) for role, size in each.items()),
        ("all roles at one moment", together, ALL_ROLES),
    ]:
        verdict = ("met" if size <= limit * trl else "MISSED") if judged else ""
        wanted = f"<= {limit:g}" if judged else ""
        lines.append(f"| {name} | {role} | {size:.2f} | {size / trl:.2f} | {wanted} | {verdict} |")
    return lines
