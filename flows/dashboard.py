"""A run in Prefect's pages: progress bars, a report of each stage, and its log.

Nothing here may fail a run: a page that cannot be written is logged and forgotten.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)

from flows.manifest import Artifact
from flows.progress import duration
from flows.stage_report import stage_report

_UPDATE_S = 5.0
"""Each update is a request to the server."""

Logger = logging.Logger | logging.LoggerAdapter[Any]


class PrefectDashboard:
    """Shows the run at hand; see `flows.run_record.Dashboard`."""

    def __init__(self, logger: Logger, *, now: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._now = now
        self._bars: dict[str, UUID] = {}
        self._updated_s: dict[str, float] = {}
        self._begun: dict[str, tuple[float, int]] = {}
        self._line = ""

    def write(self, text: str) -> int:
        """Console output, one log line a line."""
        *whole, self._line = (self._line + text).split("\n")
        for line in whole:
            if line.strip():
                self._logger.info(line.rstrip())
        return len(text)

    def flush(self) -> None:
        """Nothing is held back but half lines."""

    def progress(
        self, stage: str, step: int, total: int, unit: str, figures: Mapping[str, float]
    ) -> None:
        """Move the stage's bar, at most every few seconds."""
        now = self._now()
        began_s, first = self._begun.setdefault(stage, (now, step))
        if step < total and now - self._updated_s.get(stage, -_UPDATE_S) < _UPDATE_S:
            return
        self._updated_s[stage] = now
        told = [f"{unit} {step} of {total}"]
        if first < step < total:
            left_s = (now - began_s) / (step - first) * (total - step)
            told.append(f"about {duration(left_s)} left")
        told += [f"{name} {value:.4g}" for name, value in figures.items()]
        self._shown(stage, 100.0 * step / total if total else 100.0, ", ".join(told))

    def link(self, key: str, url: str, text: str) -> None:
        """Put a link among the run's artifacts."""
        try:
            create_link_artifact(url, link_text=url, key=key, description=text)
        except Exception as error:
            self._logger.warning("the link to %s cannot be shown: %s", url, error)

    def said(self, text: str) -> None:
        """Nothing: `write` has logged it."""

    def recorded(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing: a stage's report shows its metrics."""

    def stage_ended(self, artifact: Artifact, *, reused: bool) -> None:
        """Put the stage's report on its task."""
        try:
            create_markdown_artifact(
                stage_report(artifact, reused=reused),
                key=f"stage-{artifact.stage.replace('_', '-')}",
                description=f"{artifact.stage} {artifact.key[:12]}"
                + (" (reused)" if reused else ""),
            )
        except Exception as error:
            self._logger.warning("the report of %s cannot be shown: %s", artifact.stage, error)

    def _shown(self, stage: str, percent: float, text: str) -> None:
        try:
            if stage in self._bars:
                update_progress_artifact(self._bars[stage], progress=percent, description=text)
            else:
                key = f"progress-{stage.replace('_', '-')}"
                made = create_progress_artifact(percent, key=key, description=text)
                self._bars[stage] = UUID(str(made))
        except Exception as error:
            self._logger.warning("the progress of %s cannot be shown: %s", stage, error)
