"""Metrics of a stage as JSON lines: one step a line, readable while the stage works."""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flows.durable import finite_json, made_folder


class JsonlMetrics:
    """A metric sink that appends to one file, `{"step": 3, "wall_s": 12.5, "loss": 0.7}` a line.

    `wall_s` counts the stage's working seconds on across interruptions. A number that is not
    finite is written as null. A resumed stage repeats the steps after its checkpoint:
    `read_metrics` takes the last line of each step.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.monotonic) -> None:
        made_folder(path.parent)
        _cut_half_line(path)
        earlier_s = max((line["wall_s"] for line in read_metrics(path)), default=0.0)
        self.path = path
        self._now = now
        self._started = now() - earlier_s

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one step's metrics."""
        line = {"step": step, "wall_s": round(self._now() - self._started, 3)} | dict(metrics)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite_json(line)) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The steps of a metrics file in order, the last line of each; empty if there is no file."""
    if not path.exists():
        return []
    steps: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            record = json.loads(line)
            steps.pop(record["step"], None)
            steps[record["step"]] = record
    return [steps[step] for step in sorted(steps)]


def _cut_half_line(path: Path) -> None:
    """Drop what a killed process may have left after the last line's end."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
