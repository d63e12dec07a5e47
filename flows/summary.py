"""The schema of `runs/<name>/summary.json`: what a run measured and on what.

All times are wall seconds, all memory GiB. Everything but `reused` and the timings of reused
stages is about the invocation that finished the run, not about earlier, interrupted ones.
"""

import math
import os
import platform
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from alignment.errors import StoreError
from flows.durable import write_json
from flows.memory import MemoryReport, system_memory_gib
from flows.timing import WorkClock

SUMMARY_NAME = "summary.json"
SCHEMA_VERSION = 1
_ROUNDING_S = 0.05

Seconds = Annotated[FiniteFloat, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


class Record(BaseModel):
    """Frozen, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Target(Record):
    """One measured figure: its value, on how many items, and its interval if it has one."""

    value: FiniteFloat
    n: Count
    """Number of independent items behind the value, e.g. held-out prompts."""
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    """95% interval; how it was made stands in `about`."""
    unit: str = ""
    about: str = ""
    """One sentence for people: what was measured, how."""
    seed: Count
    command: str
    """Command that produced the value."""

    @model_validator(mode="after")
    def _interval_is_whole(self) -> Self:
        if (self.low is None) != (self.high is None):
            raise ValueError(f"low {self.low} and high {self.high}: give both or neither")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class Check(Record):
    """One condition that the run has to meet, and what was seen."""

    passed: bool
    detail: str


class Versions(Record):
    """Versions of the engines as loaded by the processes of this run; None: not loaded.

    `not_loaded` says of each engine that is None why the run had no use for it.
    """

    ray: str | None
    vllm: str | None
    deepspeed: str | None
    prefect: str | None
    gradio: str | None
    other: dict[str, str | None] = {}
    """Anything else, e.g. torch, python, commit."""
    not_loaded: dict[str, str] = {}

    @model_validator(mode="after")
    def _reasons_are_about_absent_engines(self) -> Self:
        loaded = [name for name in self.not_loaded if getattr(self, name, "") is not None]
        if loaded:
            raise ValueError(f"`not_loaded` gives a reason for {', '.join(loaded)}: not absent")
        return self


class Actor(Record):
    """A process that held a role while a stage worked.

    `engine` is the class that did the work, e.g. `DeepSpeedEngine` or `LLM`; `steps` its
    optimiser steps; `policy_versions` the versions of the weights it sampled with.
    """

    stage: str = ""
    role: str
    rank: Count
    pid: Annotated[int, Field(ge=1)]
    host: str = ""
    engine: str
    steps: Count = 0
    policy_versions: tuple[int, ...] = ()


class StageTiming(Record):
    """Seconds of one stage; `reused` stages only cost the look-up."""

    wall_s: Seconds
    model_start_s: Seconds = 0.0
    model_work_s: Seconds = 0.0
    waiting_for_people_s: Seconds = 0.0
    reused: bool = False


class Timing(Record):
    """Seconds of the whole invocation.

    `orchestration_s` is the rest: wall time minus model start, model work and waiting for people.
    """

    wall_s: Seconds
    model_start_s: Seconds
    model_work_s: Seconds
    waiting_for_people_s: Seconds
    orchestration_s: FiniteFloat
    stages: dict[str, StageTiming]

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        known = self.model_start_s + self.model_work_s + self.waiting_for_people_s
        if not math.isclose(self.wall_s - known, self.orchestration_s, abs_tol=_ROUNDING_S):
            raise ValueError(
                f"orchestration_s {self.orchestration_s} is not wall_s {self.wall_s} minus "
                f"model and waiting time {known:.3f}"
            )
        return self


class Memory(Record):
    """Memory in GiB; see `flows.memory.MemoryReport`."""

    period_s: Seconds
    samples: Count
    start_gib: FiniteFloat
    peak_rise_gib: FiniteFloat
    peak_pss_gib: dict[str, FiniteFloat]


class Machine(Record):
    """Where the run took place."""

    cores: Count
    memory_gib: FiniteFloat
    platform: str
    load_average_at_start: FiniteFloat


class Summary(Record):
    """What a finished run measured."""

    schema_version: int = SCHEMA_VERSION
    run: str
    command: str
    finished: str
    """ISO 8601 with time zone."""
    seed: Count
    simulated_labels: bool
    """True if the simulated panel, not people, ranked."""
    data: dict[str, Count] = {}
    """Records that the run used of each kind, and how many the source offered or lost."""
    targets: dict[str, Target]
    checks: dict[str, Check] = {}
    versions: Versions
    actors: tuple[Actor, ...]
    timing: Timing
    memory: Memory
    machine: Machine
    reused: tuple[str, ...]
    """Stages taken from the store as they were."""

    @model_validator(mode="after")
    def _known_schema(self) -> Self:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema_version {self.schema_version}; known is {SCHEMA_VERSION}")
        return self


def timing_of(clock: WorkClock, reused: tuple[str, ...]) -> Timing:
    """What `clock` counted so far."""
    start = round(clock.phase_s("model_start"), 3)
    work = round(clock.phase_s("model_work"), 3)
    waiting = round(clock.phase_s("waiting_for_people"), 3)
    wall = round(clock.wall_s(), 3)
    return Timing(
        wall_s=wall,
        model_start_s=start,
        model_work_s=work,
        waiting_for_people_s=waiting,
        orchestration_s=round(wall - start - work - waiting, 3),
        stages={
            name: StageTiming(
                wall_s=round(seconds, 3),
                model_start_s=round(clock.phase_s("model_start", name), 3),
                model_work_s=round(clock.phase_s("model_work", name), 3),
                waiting_for_people_s=round(clock.phase_s("waiting_for_people", name), 3),
                reused=name in reused,
            )
            for name, seconds in clock.stages_s().items()
        },
    )


def memory_of(report: MemoryReport) -> Memory:
    """A sampler's report as part of the summary."""
    return Memory(
        period_s=report.period_s,
        samples=report.samples,
        start_gib=report.start_gib,
        peak_rise_gib=report.peak_rise_gib,
        peak_pss_gib=report.peak_pss_gib,
    )


def this_machine() -> Machine:
    """The machine this process runs on; call it when the run begins, for its load."""
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(system_memory_gib(), 2),
        platform=platform.platform(),
        load_average_at_start=round(os.getloadavg()[0], 2),
    )


def write_summary(folder: Path, summary: Summary) -> Path:
    """Write `summary.json` into a run's folder."""
    path = folder / SUMMARY_NAME
    write_json(path, summary.model_dump(mode="json"))
    return path


def read_summary(folder: Path) -> Summary:
    """The summary in a run's folder.

    Raises:
        StoreError: there is none, or it does not follow the schema.
    """
    path = folder / SUMMARY_NAME
    try:
        return Summary.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise StoreError(
            f"{path} does not exist: the run has not finished. Run its command again to go on"
        ) from None
    except ValidationError as error:
        raise StoreError(f"{path} does not follow the schema of a summary: {error}") from error
