"""The reconciler: the only one who resumes runs that wait for people, and restarts crashed ones.

It looks every few seconds and acts on what it sees, so nothing is lost while it or the server is
away, and doing the same twice does no harm. `alignflow resume` calls the same functions.

    alignflow reconcile
"""

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.states import Crashed, Scheduled
from pydantic import ValidationError

from alignment.cluster.process_identity import ProcessIdentity, is_known_here, state_of
from alignment.config import PipelineConfig
from alignment.errors import AlignmentError, LabelError, ServerError, StoreError
from flows.deployed_run import PROCESS_KEY
from flows.prefect_api import FLOWS, require_server_named, server_errors
from flows.suspension import Wait, progress_text, read_wait, share
from flows.waiting import OpenRound

logger = logging.getLogger("alignflow.reconcile")

TICK_S = 10.0
MAX_RESTARTS = 10
PENDING_S = 180.0
"""A run that a worker took and has not begun after this time lost its worker."""
SILENT_S = 180.0
"""A run that began and has not said after this time which process works on it lost that one."""
CANCELLED_S = 600.0
"""How long after a run was cancelled its Ray jobs are looked for."""
SETTLED_S = 5.0
"""Both the runner and the worker report a death, a moment apart: a run restarted in between would
be marked Crashed once more."""
_WATCHED = (StateType.PAUSED, StateType.CRASHED, StateType.RUNNING, StateType.PENDING)
_PAGE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one look found about one flow run, and what was done about it."""

    flow_run_id: UUID
    run: str
    """The run's name in its settings."""
    state: str
    action: str = "none"
    """`resumed`, `restarted`, `given up`, `marked crashed`, `rescheduled`, `job stopped`,
    `waiting` or `none`."""
    detail: str = ""
    round_id: str = ""
    rankings_done: int = 0
    rankings_wanted: int = 0


@dataclass(slots=True)
class Suspicion:
    """Runs whose process was found dead, and when first: the worker may be about to say so."""

    since_s: dict[UUID, float] = field(default_factory=dict)
    grace_s: float = 15.0

    def confirmed(self, flow_run_id: UUID, now_s: float) -> bool:
        """Whether the process has been dead for longer than the worker's own report takes."""
        return now_s - self.since_s.setdefault(flow_run_id, now_s) >= self.grace_s

    def dismiss(self, flow_run_id: UUID) -> None:
        """The run's process is alive."""
        self.since_s.pop(flow_run_id, None)


def look(
    client: SyncPrefectClient,
    *,
    max_restarts: int = MAX_RESTARTS,
    suspicion: Suspicion | None = None,
    now_s: float | None = None,
) -> list[Seen]:
    """Look at every unfinished or crashed run once, and do what it needs."""
    suspicion = suspicion or Suspicion()
    now = time.monotonic() if now_s is None else now_s
    seen = []
    for flow_run in _watched_runs(client):
        try:
            seen.append(_settle(client, flow_run, max_restarts, suspicion, now))
        except AlignmentError as error:
            logger.warning("%s: %s", run_name(flow_run), error)
            seen.append(_seen(flow_run, detail=str(error)))
    return [*seen, *_stop_left_jobs(client)]


def _settle(
    client: SyncPrefectClient,
    flow_run: Any,
    max_restarts: int,
    suspicion: Suspicion,
    now_s: float,
) -> Seen:
    match flow_run.state.type:
        case StateType.PAUSED:
            return resume_if_ranked(client, flow_run)
        case StateType.CRASHED:
            return restart(client, flow_run, max_restarts=max_restarts)
        case StateType.PENDING:
            return _reschedule_if_forgotten(client, flow_run)
        case _:
            return _mark_crashed_if_dead(client, flow_run, suspicion, now_s)


def resume_if_ranked(
    client: SyncPrefectClient, flow_run: Any, *, expected: str | None = None
) -> Seen:
    """Resume a suspended run whose round has its rankings; else show how far the round is.

    Args:
        client: of the server.
        flow_run: a suspended run.
        expected: digest of the label set that the caller means; the frozen one if None.

    Raises:
        LabelError: `expected` is not the frozen set.
        StoreError: the label store the run waits for is not on this machine.
    """
    wait = read_wait(client, flow_run)
    if wait is None:
        return _seen(flow_run, detail="suspended by somebody, not for rankings")
    status, digest = _round(wait)
    told = {
        "round_id": wait.round_id,
        "rankings_done": status.rankings_done,
        "rankings_wanted": status.rankings_wanted,
    }
    if expected is not None and expected != digest:
        frozen = f"its frozen set is {digest}" if digest else "its rankings are not frozen yet"
        raise LabelError(
            f"run {run_name(flow_run)} waits for round {wait.round_id}, and {frozen}; label set "
            f"{expected} was given. Leave --labels out to resume with the frozen set"
        )
    if digest is None:
        _show_progress(client, wait, status)
        return _seen(flow_run, action="waiting", **told)
    _show_progress(client, wait, status)
    answer = {"labels_digest": digest, "rankings": status.rankings_done}
    result = client.resume_flow_run(flow_run.id, run_input=answer)
    if result.status == SetStateStatus.ACCEPT:
        return _seen(flow_run, action="resumed", detail=f"label set {digest}", **told)
    reason = getattr(result.details, "reason", "") or result.status.value
    return _seen(flow_run, detail=f"not resumed: {reason}", **told)


def restart(client: SyncPrefectClient, flow_run: Any, *, max_restarts: int) -> Seen:
    """Schedule a crashed run again, unless it crashed too often; finished stages are reused."""
    if _seconds_in_state(flow_run) < SETTLED_S:
        return _seen(flow_run, detail="crashed a moment ago")
    states = client.read_flow_run_states(flow_run.id)
    crashes = sum(state.type == StateType.CRASHED for state in states)
    if crashes > max_restarts:
        return _seen(flow_run, action="given up", detail=f"it crashed {crashes} times")
    if flow_run.deployment_id is None:
        return _seen(flow_run, detail="crashed, and has no deployment to start it again")
    message = f"Restarted by alignflow after crash {crashes} of at most {max_restarts}"
    client.set_flow_run_state(flow_run.id, Scheduled(message=message), force=True)
    return _seen(flow_run, action="restarted", detail=f"crash {crashes} of {max_restarts}")


def _mark_crashed_if_dead(
    client: SyncPrefectClient, flow_run: Any, suspicion: Suspicion, now_s: float
) -> Seen:
    gone = _why_gone(client, flow_run)
    if gone is None:
        suspicion.dismiss(flow_run.id)
        return _seen(flow_run)
    if not suspicion.confirmed(flow_run.id, now_s):
        return _seen(flow_run, detail=gone)
    suspicion.dismiss(flow_run.id)
    fresh = client.read_flow_run(flow_run.id)
    if fresh.state != flow_run.state:
        return _seen(fresh)
    client.set_flow_run_state(flow_run.id, Crashed(message=gone), force=True)
    return _seen(flow_run, action="marked crashed", detail=gone)


def _stop_left_jobs(client: SyncPrefectClient) -> list[Seen]:
    """Stop Ray jobs of runs that were cancelled when no process of theirs was left to do it."""
    stopped = []
    lately = (datetime.now(UTC) - timedelta(seconds=CANCELLED_S)).isoformat()
    which = {
        "state": {"type": {"any_": [StateType.CANCELLED.value]}},
        "end_time": {"after_": lately},
    }
    for flow_run in _read_runs(client, which):
        try:
            config = PipelineConfig.model_validate(flow_run.parameters.get("config") or {})
            for job_id in _stopped_jobs(config, before_s=flow_run.state.timestamp.timestamp()):
                stopped.append(_seen(flow_run, action="job stopped", detail=job_id))
        except (AlignmentError, ValidationError) as error:
            logger.warning("%s: %s", run_name(flow_run), error)
    return stopped


def _stopped_jobs(config: PipelineConfig, *, before_s: float) -> list[str]:
    if config.cluster.job_server is None:
        return []
    from flows.stage_jobs import stop_jobs_of

    home = Path(os.environ.get("ALIGNFLOW_HOME", "")).absolute()
    at_home = config.run.model_copy(update={"runs": home / config.run.runs})
    return stop_jobs_of(config.model_copy(update={"run": at_home}), before_s=before_s)


def _why_gone(client: SyncPrefectClient, flow_run: Any) -> str | None:
    """Why nobody works on a run that is said to run; None if somebody does or may do."""
    note = _process_note(client, flow_run)
    if note is None:
        silent_s = _seconds_in_state(flow_run)
        if silent_s < SILENT_S:
            return None
        return f"After {silent_s:.0f} s no process has said that it works on this run"
    process = ProcessIdentity(**{name: note[name] for name in ("pid", "started", "numbering")})
    if not is_known_here(process) or state_of(process) not in (None, "Z"):
        return None
    return f"Process {process.pid} of this run ended without a word"


def _seconds_in_state(flow_run: Any) -> float:
    return float((datetime.now(UTC) - flow_run.state.timestamp).total_seconds())


def _reschedule_if_forgotten(client: SyncPrefectClient, flow_run: Any) -> Seen:
    waited_s = _seconds_in_state(flow_run)
    if waited_s < PENDING_S or flow_run.deployment_id is None:
        return _seen(flow_run)
    message = f"Its worker took it {waited_s:.0f} s ago and did not begin"
    client.set_flow_run_state(flow_run.id, Scheduled(message=message), force=True)
    return _seen(flow_run, action="rescheduled", detail=message)


def _process_note(client: SyncPrefectClient, flow_run: Any) -> dict[str, Any] | None:
    """What the process of the run's newest attempt wrote down about itself."""
    inputs = client.filter_flow_run_input(
        flow_run_id=flow_run.id,
        key_prefix=f"{PROCESS_KEY}{flow_run.run_count}-",
        limit=_PAGE,
        exclude_keys=set(),
    )
    if not inputs:
        return None
    return dict(max(inputs, key=lambda found: str(found.created)).decoded_value)


def _round(wait: Wait) -> tuple[OpenRound, str | None]:
    """How far the round is, and its digest if it is frozen or complete (and then frozen now)."""
    from flows.stages.preferences import label_store_path
    from labeling_ui.store import LabelStore

    path = label_store_path(Path(wait.store))
    if not path.exists():
        raise StoreError(
            f"the label store {path} that the run waits for is not on this machine; run the "
            "reconciler where the store is"
        )
    with LabelStore.open(path) as labels:
        status = labels.progress(wait.round_id)
        digest = status.frozen_digest
        if digest is None and status.rankings_done >= status.rankings_wanted:
            digest = labels.freeze(wait.round_id)
    shown = OpenRound(
        round_id=wait.round_id,
        rankings_wanted=status.rankings_wanted,
        rankings_done=status.rankings_done,
        store=wait.store,
    )
    return shown, digest


def _show_progress(client: SyncPrefectClient, wait: Wait, status: OpenRound) -> None:
    """Move the bar on the run's page; a page that cannot be written stops nothing."""
    update = ArtifactUpdate(
        data=share(status.rankings_done, status.rankings_wanted),
        description=progress_text(status, wait.deadline),
    )
    try:
        client.update_artifact(UUID(wait.artifact_id), update)
    except Exception as error:
        logger.warning("the progress of round %s cannot be shown: %s", wait.round_id, error)


def _watched_runs(client: SyncPrefectClient) -> Sequence[Any]:
    return _read_runs(client, {"state": {"type": {"any_": [kind.value for kind in _WATCHED]}}})


def _read_runs(client: SyncPrefectClient, which: dict[str, Any]) -> Sequence[Any]:
    found: list[Any] = []
    while True:
        page = client.read_flow_runs(
            flow_filter=FlowFilter.model_validate({"name": {"any_": list(FLOWS)}}),
            flow_run_filter=FlowRunFilter.model_validate(which),
            limit=_PAGE,
            offset=len(found),
        )
        found += page
        if len(page) < _PAGE:
            return found


def _seen(flow_run: Any, **told: Any) -> Seen:
    return Seen(
        flow_run_id=flow_run.id, run=run_name(flow_run), state=flow_run.state.name or "", **told
    )


def run_name(flow_run: Any) -> str:
    """The name in the run's settings, else Prefect's own for the flow run."""
    settings = flow_run.parameters.get("config") or {}
    named = settings.get("run", {}).get("name") if isinstance(settings, dict) else None
    return str(named or flow_run.name)


def watch(
    *,
    tick_s: float = TICK_S,
    max_restarts: int = MAX_RESTARTS,
    show: Callable[[list[Seen]], None] = lambda seen: None,
    stop: Callable[[], bool] = lambda: False,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Look every `tick_s` seconds until `stop`; a server that is away is asked again."""
    url = require_server_named()
    suspicion = Suspicion()
    while not stop():
        try:
            with server_errors(url), get_client(sync_client=True) as client:
                seen = look(client, max_restarts=max_restarts, suspicion=suspicion)
        except ServerError as error:
            logger.warning("%s", error)
        else:
            for one in seen:
                if one.action not in ("none", "waiting"):
                    logger.info("%s", json.dumps(asdict(one), default=str))
            show(seen)
        with suppress(InterruptedError):
            sleep(tick_s)
