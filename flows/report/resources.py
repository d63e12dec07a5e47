"""Where the time and the memory went."""

from collections.abc import Iterator, Mapping, Sequence

from alignment.metrics import METRICS
from flows.progress import duration
from flows.report.inputs import ReportInputs
from flows.report.markup import Content, Html, section, table, tag
from flows.report.wording import number, readable
from flows.summary import StageTiming, Summary

_KINDS = {
    "work": "model work",
    "start": "model start",
    "people": "waiting for people",
    "rest": "orchestration",
}
_STEP = "time/step_s"


def resources_section(inputs: ReportInputs) -> Html | None:
    """Bars of seconds by stage and by phase of PPO, and of memory by role."""
    parts: list[Content] = []
    if inputs.summary is not None:
        parts += _time_by_stage(inputs.summary)
    parts += _time_by_phase(inputs)
    if inputs.summary is not None:
        parts += _memory(inputs.summary)
    if not parts:
        return None
    return section(
        "resources",
        "Time and memory",
        "Bars of one group share one scale; orchestration is all time in which no model was "
        "loading or computing and nobody was waited for.",
        *parts,
    )


def _time_by_stage(summary: Summary) -> Iterator[Html]:
    timing = summary.timing
    yield tag("h3", "Time by stage", tag("small", f" {duration(timing.wall_s)} in all"))
    yield tag(
        "p",
        *(
            tag("span", tag("i", class_=f"dot {kind}"), f"{name} {duration(seconds)}")
            for kind, name, seconds in (
                ("work", _KINDS["work"], timing.model_work_s),
                ("start", _KINDS["start"], timing.model_start_s),
                ("people", _KINDS["people"], timing.waiting_for_people_s),
                ("rest", _KINDS["rest"], timing.orchestration_s),
            )
            if seconds > 0
        ),
        class_="legend",
    )
    longest = max((stage.wall_s for stage in timing.stages.values()), default=0.0)
    yield _bars(
        [
            (name, _stage_parts(stage), "reused" if stage.reused else duration(stage.wall_s))
            for name, stage in timing.stages.items()
        ],
        longest,
    )


def _stage_parts(stage: StageTiming) -> dict[str, float]:
    known = stage.model_work_s + stage.model_start_s + stage.waiting_for_people_s
    return {
        "work": stage.model_work_s,
        "start": stage.model_start_s,
        "people": stage.waiting_for_people_s,
        "rest": max(0.0, stage.wall_s - known),
    }


def _time_by_phase(inputs: ReportInputs) -> Iterator[Html]:
    rows = inputs.metrics["ppo"]
    phases = {
        name: sum(row.get(name) or 0.0 for row in rows)
        for name in METRICS
        if name.startswith("time/") and any(name in row for row in rows)
    }
    whole = phases.pop(_STEP, sum(phases.values()))
    if not phases or not whole:
        return
    said = f" {len(rows)} steps, {duration(whole / len(rows))} a step"
    rest = whole - sum(phases.values())
    if rest > 0:
        phases["the rest"] = rest
    elif rest < 0:
        said += ", some phases at the same time"
    yield tag("h3", "Time by phase of PPO", tag("small", said))
    yield _bars(
        [
            (_phase_name(name), {"work": seconds}, f"{duration(seconds)} · {seconds / whole:.0%}")
            for name, seconds in sorted(phases.items(), key=lambda item: -item[1])
        ],
        max(phases.values()),
    )


def _phase_name(name: str) -> str:
    return readable(name.removeprefix("time/").removesuffix("_s"))


def _memory(summary: Summary) -> Iterator[Html]:
    memory = summary.memory
    yield tag("h3", "Memory")
    yield tag(
        "p",
        f"At its highest the system used {number(memory.peak_rise_gib)} GiB more than at the start "
        f"({number(memory.start_gib)} of {number(summary.machine.memory_gib)} GiB), sampled every "
        f"{memory.period_s:g} s, {memory.samples:,} times.",
    )
    peaks = memory.peak_pss_gib
    if not peaks:
        return
    yield _bars(
        [
            (name, {"memory": gib}, f"{gib:.2f} GiB")
            for name, gib in sorted(peaks.items(), key=lambda item: -item[1])
        ],
        max(peaks.values()),
    )
    yield tag(
        "p",
        "Highest proportional set size of each process: pages shared by several count in parts. "
        "The peaks need not have been at the same time.",
        class_="how",
    )


def _bars(rows: Sequence[tuple[str, Mapping[str, float], str]], longest: float) -> Html:
    """Horizontal bars, each of parts; `longest` fills the width."""
    return tag(
        "div",
        *(
            tag(
                "div",
                tag("span", readable(name), class_="name"),
                tag(
                    "span",
                    *(
                        tag("i", class_=kind, style=f"width:{100 * size / longest:.2f}%")
                        for kind, size in parts.items()
                        if longest > 0 and size > 0
                    ),
                    class_="track",
                ),
                tag("span", value, class_="amount"),
                class_="bar",
            )
            for name, parts, value in rows
        ),
        class_="bars",
    )


def actors_table(summary: Summary) -> Html | None:
    """The processes that held the roles."""
    if not summary.actors:
        return None
    return table(
        ("Stage", "Role", "Process", "Engine", "Optimiser steps", "Policy versions sampled"),
        [
            [
                readable(actor.stage),
                f"{readable(actor.role)}, rank {actor.rank}",
                f"pid {actor.pid}" + (f" on {actor.host}" if actor.host else ""),
                actor.engine,
                f"{actor.steps:,}" if actor.steps else "–",
                ", ".join(map(str, actor.policy_versions)) or "–",
            ]
            for actor in summary.actors
        ],
    )
