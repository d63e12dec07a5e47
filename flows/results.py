"""The final table of a run: every target with its interval, and where the time went."""

from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from flows.progress import duration
from flows.summary import Check, Summary, Target


def print_results(console: Console, summary: Summary, report: Path | None) -> None:
    """Print a summary for people; `report` is the path of the run's report if it has one."""
    console.print(_targets(summary))
    for line in _lines(summary):
        console.print(line, soft_wrap=True)
    if report is not None:
        console.print(Text(f"report: {report}"), soft_wrap=True)


def _targets(summary: Summary) -> RenderableType:
    table = Table(title=f"{summary.run} (seed {summary.seed})", title_justify="left")
    table.add_column("measured")
    for heading in ("value", "95% interval", "n"):
        table.add_column(heading, justify="right")
    for name, target in summary.targets.items():
        table.add_row(name, _value(target), _interval(target), str(target.n))
    if not summary.simulated_labels:
        return table
    return Group(
        table, Text("Rankings are SIMULATED: a noisy panel with a hidden rubric, no people.")
    )


def _lines(summary: Summary) -> list[Text]:
    timing, memory = summary.timing, summary.memory
    parts = [
        f"model work {duration(timing.model_work_s)}",
        f"model start {duration(timing.model_start_s)}",
        f"orchestration {duration(timing.orchestration_s)}",
    ]
    if timing.waiting_for_people_s:
        parts.append(f"waiting for people {duration(timing.waiting_for_people_s)}")
    lines = [Text(f"time   {duration(timing.wall_s)}: {', '.join(parts)}")]
    lines.append(Text(f"memory {memory.peak_rise_gib:.2f} GiB above the start, at its highest"))
    if summary.reused:
        lines.append(Text(f"reused {', '.join(summary.reused)}"))
    lines += [_check(name, check) for name, check in summary.checks.items()]
    return lines


def _check(name: str, check: Check) -> Text:
    word, style = ("passed", "green") if check.passed else ("FAILED", "red")
    return Text.assemble(("check  ", ""), (word, style), f" {name}: {check.detail}")


def _value(target: Target) -> str:
    return f"{target.value:.4g} {target.unit}".strip()


def _interval(target: Target) -> str:
    if target.low is None or target.high is None:
        return ""
    return f"[{target.low:.4g}, {target.high:.4g}]"
