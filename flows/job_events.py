"""What a stage in a Ray job tells the run that waits for it: marked lines in the job's output.

Between them stands what the job prints for people, so that its log on Ray's pages can be read.
"""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from flows.manifest import Artifact

_MARK = "@alignflow "


def tell(kind: str, **content: Any) -> None:
    """Print one event."""
    event = {"kind": kind, "at_s": round(time.time(), 3), **content}
    # In ASCII: no text in it ends the line, or cannot be written.
    sys.stdout.write(f"{_MARK}{json.dumps(event, default=float)}\n")
    sys.stdout.flush()


def read_event(line: str) -> dict[str, Any] | None:
    """The event on a line of a job's output, whatever stands before it; None if there is none."""
    _, _, marked = line.partition(_MARK)
    try:
        event = json.loads(marked)
    except ValueError:
        return None  # or cut short, by a kill or by another process that printed in between
    is_ours = isinstance(event, dict) and event.keys() >= {"kind", "at_s"}
    return event if is_ours else None


class JobDashboard:
    """Shows a stage by events; see `flows.run_record.Dashboard`."""

    def write(self, text: str) -> int:
        """Console output, for people who read the job's log."""
        return sys.stdout.write(text)

    def flush(self) -> None:
        """End of a piece."""
        sys.stdout.flush()

    def progress(
        self, stage: str, step: int, total: int, unit: str, figures: Mapping[str, float]
    ) -> None:
        """Tell how far the stage is."""
        tell("progress", step=step, total=total, unit=unit, figures=dict(figures))

    def said(self, text: str) -> None:
        """Tell what the run shall say."""
        tell("said", text=text)

    def recorded(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Tell a step's metrics."""
        tell("recorded", stage=stage, step=step, metrics=dict(metrics))

    def stage_ended(self, artifact: Artifact, *, reused: bool) -> None:
        """Nothing: the run shows the stage's report."""
