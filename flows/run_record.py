"""What is kept of one run, in `runs/<name>/`.

    run.json               resolved configuration, state, and each stage's key and state
    metrics/<stage>.jsonl  numbers while a stage works
    summary.json           what the finished run measured (flows/summary.py)
    error.log              the last failure's traceback

The folder is a view for people and reports: what decides reuse is the store.
"""

import os
import re
import shutil
import socket
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, ValidationError

from alignment.config import PipelineConfig
from alignment.errors import StoreError
from flows.durable import disk_errors, made_folder, write_json
from flows.lease import lease
from flows.manifest import OUTPUTS_FOLDER, Artifact
from flows.metrics_log import JsonlMetrics
from flows.reuse import reason_to_reuse
from flows.store import ArtifactStore
from flows.waiting import WaitingForPeople

RunState = Literal["running", "done", "failed", "interrupted", "waiting"]
StageState = Literal["working", "done", "reused"]
RUN_NAME = "run.json"
_ROUND = re.compile(r"-\d+$")
ERROR_LOG_NAME = "error.log"
METRICS_OUTPUT = "metrics.jsonl"
"""A stage that commits its metrics under this output name gives them to runs that reuse it."""


@runtime_checkable  # Prefect describes the flow's parameters with it
class Dashboard(Protocol):
    """Where a run shows itself besides the console; nothing in it may fail a run."""

    def write(self, text: str) -> int:
        """A piece of what the console would print."""
        ...

    def flush(self) -> None:
        """End of a piece."""
        ...

    def progress(
        self, stage: str, step: int, total: int, unit: str, figures: Mapping[str, float]
    ) -> None:
        """`step` of `total` of a stage are done."""
        ...

    def said(self, text: str) -> None:
        """A line that stays, which `write` gets as well."""
        ...

    def recorded(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """All metrics of a step, as they go into the run's folder."""
        ...

    def stage_ended(self, artifact: Artifact, *, reused: bool) -> None:
        """A stage is finished; called inside its task."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a run was started; none of it changes what is computed.

    `serve_labels` starts the ranking page and waits for people in this process; `command` is
    the command line as the user typed it, to be shown beside results. `only` names the one stage
    to do, those before it being in the store already. `resumed_with` holds, by round, the digest
    of the frozen rankings that a suspended run was resumed with. `dashboard` shows progress and
    results in Prefect's pages. `part_of` is the folder of the run for which this process does one
    stage, as a Ray job: what the store keeps for a run is decided by that one.
    """

    serve_labels: bool = False
    open_browser: bool = True
    command: str = ""
    only: str | None = None
    resumed_with: Mapping[str, str] = field(default_factory=dict)
    dashboard: Dashboard | None = None
    part_of: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """What a finished run leaves: its folder, and its report if it has one."""

    folder: Path
    report: Path | None = None


class StageRecord(BaseModel):
    """A stage of a run: the key being worked on, and the key under which it last finished."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: StageState
    key: str
    finished_key: str | None = None
    reason: str = ""
    seconds: float | None = None


class RunFile(BaseModel):
    """The contents of `run.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    name: str
    state: RunState
    detail: str = ""
    command: str = ""
    pid: int
    host: str
    started: str
    ended: str | None = None
    store: str
    """Folder of the artifact store."""
    config: dict[str, Any]
    stages: dict[str, StageRecord] = {}
    warnings: list[str] = []
    """What a reader of the result should know, e.g. a resume that was not exact."""

    def newest(self, stage: str) -> StageRecord | None:
        """The record of `stage` in the last round that finished it; None if none did."""
        rounds = [r for name, r in self.stages.items() if stage_of(name) == stage]
        return next((r for r in reversed(rounds) if r.finished_key), None)


class RunRecord:
    """A run's folder while this process works on the run; every change is on disk at once."""

    def __init__(self, folder: Path, file: RunFile) -> None:
        self.folder = folder
        self.file = file
        self._save()

    @property
    def name(self) -> str:
        """The run's name."""
        return self.file.name

    def finished_key(self, stage: str) -> str | None:
        """The key under which this run last finished `stage`, in whatever invocation."""
        record = self.file.stages.get(stage)
        return record.finished_key if record else None

    def begin_stage(self, stage: str, key: str, reason: str) -> None:
        """Note that `stage` is being worked on; metrics of another key are dropped."""
        earlier = self.file.stages.get(stage)
        if earlier is None or earlier.key != key:
            self.metrics_path(stage).unlink(missing_ok=True)
        finished = earlier.finished_key if earlier else None
        self._set(
            stage, StageRecord(state="working", key=key, finished_key=finished, reason=reason)
        )

    def finish_stage(self, artifact: Artifact, *, reused: bool, name: str | None = None) -> None:
        """Note that a stage is finished; a reused one brings its metrics along if it has them.

        `name` is the stage's name in this run where that is another: see `name_in_round`.
        """
        name = name or artifact.stage
        earlier = self.file.stages.get(name)
        worked_for = earlier.reason if earlier else ""
        self._set(
            name,
            StageRecord(
                state="reused" if reused else "done",
                key=artifact.key,
                finished_key=artifact.key,
                reason=reason_to_reuse(artifact, self.name) if reused else worked_for,
                seconds=artifact.seconds,
            ),
        )
        if reused:
            self.copy_metrics(artifact, name)

    def copy_metrics(self, artifact: Artifact, name: str) -> None:
        """Take a stage's metrics from its artifact, if it has them: another process wrote them."""
        if METRICS_OUTPUT in artifact.outputs:
            made_folder(self.folder / "metrics")
            source = artifact.folder / OUTPUTS_FOLDER / METRICS_OUTPUT
            shutil.copyfile(source, self.metrics_path(name))

    def metrics_path(self, stage: str) -> Path:
        """Where a stage's metrics lie."""
        return self.folder / "metrics" / f"{stage}.jsonl"

    def metrics(self, stage: str) -> JsonlMetrics:
        """A sink for a stage's metrics; goes on where an interrupted attempt stopped."""
        return JsonlMetrics(self.metrics_path(stage))

    def warn(self, text: str) -> None:
        """Note what a reader of the result should know; kept by later invocations."""
        if text not in self.file.warnings:
            self.file = self.file.model_copy(update={"warnings": [*self.file.warnings, text]})
            self._save()

    def end(self, state: RunState, detail: str = "") -> None:
        """Note how the invocation ended."""
        self.file = self.file.model_copy(update={"state": state, "detail": detail, "ended": _now()})
        self._save()

    def _set(self, stage: str, record: StageRecord) -> None:
        self.file = self.file.model_copy(update={"stages": self.file.stages | {stage: record}})
        self._save()

    def _save(self) -> None:
        with disk_errors(self.folder):
            write_json(self.folder / RUN_NAME, self.file.model_dump(mode="json"))


def name_in_round(stage: str, number: int) -> str:
    """What a stage is called in a run's round: `ppo` in the first, `ppo-2` in the second."""
    return stage if number == 1 else f"{stage}-{number}"


def stage_of(name: str) -> str:
    """The stage behind a name that `name_in_round` gave."""
    return _ROUND.sub("", name)


@contextmanager
def open_run(config: PipelineConfig, options: RunOptions) -> Iterator[RunRecord]:
    """Work on the run that `config` names; its folder tells how the block ended.

    Raises:
        StoreError: another process works on the same run, or its `run.json` is damaged.
    """
    folder = config.run.runs.absolute() / config.run.name
    with disk_errors(folder):
        made_folder(folder)
    with lease(folder / "run.lock", f"run {config.run.name}"):
        earlier = read_run(folder) if (folder / RUN_NAME).exists() else None
        record = RunRecord(
            folder,
            RunFile(
                name=config.run.name,
                state="running",
                command=options.command,
                pid=os.getpid(),
                host=socket.gethostname(),
                started=_now(),
                store=str(config.run.store.absolute()),
                config=config.model_dump(mode="json"),
                stages=earlier.stages if earlier else {},
                warnings=earlier.warnings if earlier else [],
            ),
        )
        try:
            noted = folder if options.part_of is None else None
            with ArtifactStore(config.run.store).used_by(noted):
                yield record
        except WaitingForPeople as waiting:
            record.end("waiting", str(waiting))
            raise
        except Exception as error:
            log = folder / ERROR_LOG_NAME
            log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
            record.end("failed", f"{type(error).__name__}: {error}")
            raise
        except BaseException as stop:  # Ctrl-C, a signal, or Prefect's own order to stop
            record.end("interrupted", type(stop).__name__)
            raise
        record.end("done")


def read_run(folder: Path) -> RunFile:
    """The record in a run's folder.

    Raises:
        StoreError: there is none or it cannot be read.
    """
    path = folder / RUN_NAME
    try:
        return RunFile.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        known = sorted(p.parent.name for p in folder.parent.glob(f"*/{RUN_NAME}"))
        raise StoreError(
            f"there is no run {folder.name!r} in {folder.parent}; runs there: "
            f"{', '.join(known) or 'none'}"
        ) from None
    except (OSError, ValidationError) as error:
        raise StoreError(
            f"{path} cannot be read ({error}); delete it and run again, finished stages are "
            "reused from the store"
        ) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
