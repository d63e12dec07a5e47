"""Where the wall time of a run went: by stage, and by kind of work within a stage."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

Phase = Literal["model_start", "model_work", "waiting_for_people"]
"""`model_start`: engines load; `model_work`: they compute. All other time is orchestration."""

PHASES: tuple[Phase, ...] = ("model_start", "model_work", "waiting_for_people")


class WorkClock:
    """Adds up the wall time of stages and of phases within them, in seconds.

    Phases do not nest and neither do stages: every second belongs to one of each at most.
    `now` returns seconds and never goes back.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._started = now()
        self._stages: dict[str, float] = {}
        self._phases: dict[tuple[str, Phase], float] = {}
        self._stage: str | None = None
        self._phase: Phase | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of the block to stage `name`."""
        if self._stage is not None:
            raise RuntimeError(f"stage {name} begins inside stage {self._stage}")
        self._stage, begun = name, self._now()
        try:
            yield
        finally:
            self._stages[name] = self._stages.get(name, 0.0) + self._now() - begun
            self._stage = None

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Count the time of the block to `phase` of the current stage."""
        if self._phase is not None:
            raise RuntimeError(f"phase {phase} begins inside phase {self._phase}")
        self._phase, begun = phase, self._now()
        key = (self._stage or "", phase)
        try:
            yield
        finally:
            self._phases[key] = self._phases.get(key, 0.0) + self._now() - begun
            self._phase = None

    def add_phase(self, phase: Phase, seconds: float) -> None:
        """Count seconds that another process has measured to `phase` of the current stage."""
        key = (self._stage or "", phase)
        self._phases[key] = self._phases.get(key, 0.0) + seconds

    def wall_s(self) -> float:
        """Seconds since the clock was made."""
        return self._now() - self._started

    def stages_s(self) -> Mapping[str, float]:
        """Seconds of each finished stage, in order of their beginning."""
        return dict(self._stages)

    def phase_s(self, phase: Phase, stage: str | None = None) -> float:
        """Seconds of a phase, in one stage or, without `stage`, in the whole run."""
        return sum(
            seconds
            for (name, kind), seconds in self._phases.items()
            if kind == phase and stage in (None, name)
        )
