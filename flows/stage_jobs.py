"""Stages as Ray jobs: submit or find again, follow, stop, and bring home what came out.

A job's id is made of the stage's key, so a run that was killed and is run again finds the job that
is still at work, and does not submit a second one.
"""

import hashlib
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

from alignment import errors
from alignment.cluster.jobs import JobSeen, JobServer, wait_until_free
from alignment.code_digest import DIGITS_SHOWN, code_digest
from alignment.config import PipelineConfig
from alignment.errors import AbsentClusterError, AlignmentError, ClusterError, LostActorError
from flows.interruption import raise_if_interrupted
from flows.job_events import read_event
from flows.manifest import Artifact, StageRequest
from flows.metrics_log import read_metrics
from flows.run_context import ProgressSink, RunContext
from flows.stage_call import StageCall, function_name, inputs_as_json

FREE_WITHIN_S = 30.0
"""How long a run that is stopped waits for its job to give everything back."""
PATIENCE_S = 30.0
"""How long the job server may be silent, or not ready, before the run gives up; a job goes on."""
_LOOK_S = 1.0
_ON_ITS_WAY_S = 5.0
_LINES_SHOWN = 20
_RUN, _CODE = "alignflow_run", "alignflow_code"


def do_as_job(
    run: RunContext, stage: Callable[..., Any], inputs: Sequence[Any], request: StageRequest
) -> Artifact:
    """Let the cluster do a stage, and wait; a job of this stage that is at work is joined.

    When the run is stopped, so is the job, and everything it holds is free before this returns.

    Raises:
        AlignmentError: what the stage itself had to say, as without jobs.
        LostActorError: the job's process, or the cluster with it, died.
        AbsentClusterError: the job server does not answer.
    """
    assert run.config.cluster.job_server is not None
    server = JobServer(run.config.cluster.job_server)
    job_id, joined = _free_or_working_id(server, request, run.store.where)
    try:
        if joined is None:
            _submit(run, server, job_id, _call(run, stage, inputs, request))
        else:
            run.progress.say(_joining(job_id, joined))
        told = _Told(run, since_s=time.time() if joined else 0.0)
        _follow(server, job_id, told)
    except AbsentClusterError:
        raise
    except BaseException:
        _stop(run, server, job_id)
        raise
    artifact = run.store.lookup(request)
    if artifact is None:
        raise ClusterError(
            f"Ray job {job_id} has finished {request.stage}, but it is not in the store "
            f"{run.store.where} as this machine sees it. Name a store that both sides see: a "
            "folder at the same path on both, or `run.shared_store`"
        )
    run.record.copy_metrics(artifact, run.name(request.stage))
    return artifact


def stop_jobs_of(config: PipelineConfig, *, before_s: float) -> list[str]:
    """Stop the jobs that a run submitted before a moment (seconds since 1970); gives their ids."""
    assert config.cluster.job_server is not None
    server = JobServer(config.cluster.job_server)
    mine = str(_folder(config))
    found = [
        job_id
        for job_id, seen in server.jobs().items()
        if seen.metadata.get(_RUN) == mine and not seen.ended and seen.started_s < before_s
    ]
    for job_id in found:
        server.stop(job_id)
    return found


def job_name(request: StageRequest, where: str) -> str:
    """The id of a stage's jobs without the attempt: same key and store, same name."""
    store = hashlib.sha256(where.encode()).hexdigest()[:8]
    return f"alignflow-{request.stage}-{request.key[:16]}-{store}"


def _free_or_working_id(
    server: JobServer, request: StageRequest, where: str
) -> tuple[str, JobSeen | None]:
    """The first attempt that has not ended: nobody's yet, or at work now."""
    for attempt in count(1):
        job_id = f"{job_name(request, where)}-{attempt}"
        seen = server.look(job_id)
        if seen is None or not seen.ended:
            return job_id, seen
    raise AssertionError


def _call(
    run: RunContext, stage: Callable[..., Any], inputs: Sequence[Any], request: StageRequest
) -> StageCall:
    config = run.config
    absolute = {"store": config.run.store.absolute(), "runs": config.run.runs.absolute()}
    config = config.model_copy(update={"run": config.run.model_copy(update=absolute)})
    return StageCall(
        function=function_name(stage),
        inputs=inputs_as_json(inputs),
        config=config.model_dump(mode="json"),
        round=run.round,
        key=request.key,
        code=code_digest(),
        folder=str(Path.cwd()),
    )


def _submit(run: RunContext, server: JobServer, job_id: str, call: StageCall) -> None:
    note = f"jobs/{job_id}.json"
    run.store.write_note(note, call.as_json())
    metadata = {_RUN: str(_folder(run.config)), _CODE: call.code}
    command, began = _command(run.store.where, note), time.monotonic()
    while True:
        raise_if_interrupted()
        try:
            is_ours = server.submit(job_id, command, metadata=metadata)
            break
        except AbsentClusterError:
            if time.monotonic() - began > PATIENCE_S:
                raise
            time.sleep(_LOOK_S)
        except KeyboardInterrupt:
            _wait_until_known(server, job_id)
            raise
    if is_ours:
        run.progress.say(f"Ray job {job_id}: {server.url}/#/jobs/{job_id}")


def _wait_until_known(server: JobServer, job_id: str) -> None:
    """The order may be on its way: a job that is not known yet could not be stopped."""
    deadline = time.monotonic() + _ON_ITS_WAY_S
    with suppress(AlignmentError):  # what is wrong is said when it cannot be stopped
        while server.look(job_id) is None and time.monotonic() < deadline:
            time.sleep(_LOOK_S / 5)


def _command(where: str, note: str) -> str:
    """Our interpreter where the cluster has it at the same path, else the one it finds."""
    module = shlex.join(["-m", "flows.job_entry", where, note])
    return f'P={shlex.quote(sys.executable)}; [ -x "$P" ] || P=python3; exec "$P" {module}'


def _folder(config: PipelineConfig) -> Path:
    return config.run.runs.resolve() / config.run.name  # a working folder has no links, either


def _joining(job_id: str, seen: JobSeen) -> str:
    other = seen.metadata.get(_CODE, "")
    code = ""
    if other != code_digest():
        code = f" (submitted by code {other[:DIGITS_SHOWN]}, whose stage_version is this one)"
    return f"Ray job {job_id} is at work on this already and is joined{code}"


class _Told:
    """Passes on what a job tells: progress, metrics, and at the end how it went.

    `since_s` is when a job that was at work already was joined, 0 for one of our own.
    """

    def __init__(self, run: RunContext, *, since_s: float) -> None:
        self.run = run
        self.failed: dict[str, Any] | None = None
        self.lines: list[str] = []
        self._since_s = since_s
        self._sinks: dict[str, ProgressSink] = {}
        self._known: dict[str, int] = {}

    def take(self, line: str) -> None:
        """One line of the job's output. What it said before we joined is not shown again."""
        event = read_event(line)
        if event is None:
            self.lines = [*self.lines[1 - _LINES_SHOWN :], line]
            return
        is_past = event["at_s"] < self._since_s
        match event["kind"]:
            case "progress" if not is_past:
                figures = event["figures"]
                self.run.progress.advance(event["step"], event["total"], event["unit"], **figures)
            case "said" if not is_past:
                self.run.progress.say(event["text"])
            case "recorded":
                self._keep(event, is_past)
            case "failed":
                self.failed = event
            case "done":
                self._done(event)

    def _keep(self, event: dict[str, Any], is_past: bool) -> None:
        stage, step = event["stage"], event["step"]
        if stage not in self._sinks:
            earlier = read_metrics(self.run.record.metrics_path(stage))
            self._known[stage] = earlier[-1]["step"] if earlier else -1
            self._sinks[stage] = ProgressSink(self.run, stage, 0)
        if not is_past or step > self._known[stage]:
            self._sinks[stage].keep(step, event["metrics"])

    def _done(self, event: dict[str, Any]) -> None:
        phases = event["phases"]
        waited_s, worked_s = time.time() - self._since_s, sum(phases.values())
        # What the job did before it was joined is no time of this run's.
        share = min(1.0, waited_s / worked_s) if worked_s else 1.0
        for phase, seconds in phases.items():
            self.run.clock.add_phase(phase, share * seconds)
        self.run.memory.add_peaks(event["peak_pss_gib"])
        for warning in event["warnings"]:
            self.run.record.warn(warning)


def _follow(server: JobServer, job_id: str, told: _Told) -> None:
    """Return when the job has succeeded.

    Raises:
        AlignmentError: it has not.
    """
    silent_since: float | None = None
    with server.follow(job_id) as log:
        while True:
            raise_if_interrupted()
            for line in log.lines(wait_s=_LOOK_S):
                told.take(line)
            try:
                seen = server.look(job_id)
                silent_since = None
            except AbsentClusterError:
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > PATIENCE_S:
                    raise
                continue
            if seen is None or seen.ended:
                break
    for line in log.lines(wait_s=0.0):
        told.take(line)
    succeeded = seen is not None and seen.state == "succeeded"
    # A stage that is finished counts, even if the last that it said cannot be read.
    with suppress(ClusterError) if succeeded else nullcontext():
        for line in server.log(job_id)[log.read :]:
            told.take(line)
    if not succeeded:
        _raise_what_happened(job_id, seen, told)


def _raise_what_happened(job_id: str, seen: JobSeen | None, told: _Told) -> NoReturn:
    if told.failed is not None:
        raise _own_error(job_id, told.failed)
    if seen is None:
        raise LostActorError(
            f"the cluster no longer knows Ray job {job_id}: its head was restarted, and all jobs "
            "ended with it. The stage goes on from its newest checkpoint when run again."
        )
    if seen.state == "stopped":
        raise ClusterError(
            f"Ray job {job_id} was stopped by somebody: `ray job stop`, the Ray dashboard, or "
            "another run that waited for the same stage. Run the same command again to go on from "
            "its newest checkpoint"
        )
    said = "\n".join(told.lines[-_LINES_SHOWN:]) or seen.message
    raise LostActorError(
        f"the process of Ray job {job_id} ended without a word: out of memory, killed from "
        f"outside, or never started. Its output ends with:\n{said}\n"
        "The stage goes on from its newest checkpoint when run again."
    )


def _own_error(job_id: str, failed: dict[str, Any]) -> AlignmentError:
    """The stage's error as it would have been raised here."""
    kind = getattr(errors, failed["error"], None)
    if isinstance(kind, type) and issubclass(kind, AlignmentError):
        return kind(failed["message"])
    trace = "\n".join(failed["trace"].splitlines()[-_LINES_SHOWN:])
    return ClusterError(f"Ray job {job_id} failed: {failed['error']}: {failed['message']}\n{trace}")


def _stop(run: RunContext, server: JobServer, job_id: str) -> None:
    """Stop a job and wait until all it held is free; the error that led here is raised after."""
    try:
        seen = server.look(job_id)
        if seen is None or seen.ended:
            return
        server.stop(job_id)
        left = wait_until_free(server, job_id, timeout_s=FREE_WITHIN_S)
    except AlignmentError as error:
        run.progress.say(f"Ray job {job_id} may still be at work: {error}")
        return
    if left:
        run.progress.say(f"of Ray job {job_id} there is still {', '.join(left)}")
