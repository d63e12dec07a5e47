"""A run's results on the console: what was measured, where the time went, what was checked."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.progress import duration
from flows.summary import Check, Summary, Target

_COMPARED = ("sft", "ppo", "gain")
"""Targets `sft/x`, `ppo/x` and `gain/x` are one row of the comparison."""


def print_results(console: Console, summary: Summary, report: Path | None) -> None:
    """Print a summary for people; `report` is the path of the run's report if it has one."""
    compared, others = _split(summary.targets)
    if compared:
        console.print(_comparison(compared))
    if others:
        console.print(_figures(others))
    for line in _lines(summary):
        console.print(line, soft_wrap=True)
    if report is not None:
        console.print(Text(f"report   {report}"), soft_wrap=True)


def _split(
    targets: Mapping[str, Target],
) -> tuple[dict[str, dict[str, Target]], dict[str, Target]]:
    compared: dict[str, dict[str, Target]] = {}
    others: dict[str, Target] = {}
    for name, target in targets.items():
        side, _, quantity = name.partition("/")
        if side in _COMPARED and quantity:
            compared.setdefault(quantity, {})[side] = target
        else:
            others[name] = target
    return compared, others


def _comparison(compared: Mapping[str, Mapping[str, Target]]) -> Table:
    table = Table()
    table.add_column("held out")
    for heading in ("SFT", "PPO", "PPO - SFT [95% interval]", "n"):
        table.add_column(heading, justify="right")
    for quantity, sides in compared.items():
        cells = [_value(sides.get(side)) for side in ("sft", "ppo")]
        gain = sides.get("gain")
        n = max(target.n for target in sides.values())
        table.add_row(quantity, *cells, _gain(gain) if gain else "", str(n))
    return table


def _figures(targets: Mapping[str, Target]) -> Table:
    table = Table()
    table.add_column("also measured", overflow="fold")
    for heading in ("value", "95% interval", "n"):
        table.add_column(heading, justify="right")
    for name, target in targets.items():
        interval = "" if target.low is None else f"[{target.low:.4g}, {target.high:.4g}]"
        table.add_row(name, _value(target), interval, str(target.n))
    return table


def _lines(summary: Summary) -> list[Text]:
    timing, memory = summary.timing, summary.memory
    parts = [
        f"model work {duration(timing.model_work_s)}",
        f"model start {duration(timing.model_start_s)}",
        f"orchestration {duration(timing.orchestration_s)}",
    ]
    if timing.waiting_for_people_s:
        parts.append(f"waiting for people {duration(timing.waiting_for_people_s)}")
    lines = []
    if summary.simulated_labels:
        lines.append(Text("rankings SIMULATED: a noisy panel with a hidden rubric, no people"))
    lines += [
        Text(f"measured {summary.finished}, seed {summary.seed}: {summary.command}"),
        Text(f"time     {duration(timing.wall_s)}: {', '.join(parts)}"),
        Text(f"memory   {memory.peak_rise_gib:.2f} GiB above the start, at its highest"),
    ]
    if summary.reused:
        lines.append(Text(f"reused   {', '.join(summary.reused)}"))
    lines += [_check(name, check) for name, check in summary.checks.items()]
    return lines


def _check(name: str, check: Check) -> Text:
    word, style = ("passed", "green") if check.passed else ("FAILED", "red")
    return Text.assemble("check    ", (word, style), f" {name}: {check.detail}")


def _value(target: Target | None) -> str:
    return f"{target.value:.4g} {target.unit}".strip() if target else ""


def _gain(target: Target) -> str:
    if target.low is None:
        return f"{target.value:+.4g}"
    return f"{target.value:+.4g} [{target.low:+.4g}, {target.high:+.4g}]"
