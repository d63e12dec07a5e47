"""What commands ask of deployed runs: start one, resume the ranked ones, keep an eye on all."""

import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Scheduled

from alignment.config import PipelineConfig
from alignment.errors import ConfigError, LabelError, ServerError
from flows import reconcile as reconciler
from flows.deployed_run import STAGES
from flows.prefect_api import FLOWS, require_server_named, server_errors
from flows.reconcile import Seen

_CONFLICT = 409


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One run's line of `alignflow resume`."""

    text: str
    is_waiting: bool = False
    is_refused: bool = False


def submit(config: PipelineConfig, *, stage: str | None = None) -> str:
    """Start a run of the deployed pipeline or stage; gives where to see it.

    Raises:
        ConfigError: there is no such stage.
        ServerError: the server is away, refuses us, or knows no such deployment.
    """
    if stage not in (None, *STAGES):
        raise ConfigError(f"--stage is {stage!r}; accepted: {', '.join(STAGES)}")
    name = f"align_stage/{stage}" if stage else "align/pipeline"
    url = require_server_named()
    parameters: dict[str, Any] = {"config": config.model_dump(mode="json")}
    if stage:
        parameters["stage"] = stage
    with server_errors(url), get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(name)
        except ObjectNotFound:
            raise ServerError(
                f"the server at {url} knows no deployment {name}: `alignflow up` registers it, by "
                "hand `prefect --no-prompt deploy --all` where prefect.yaml lies"
            ) from None
        run = client.create_flow_run_from_deployment(
            deployment.id, parameters=parameters, state=Scheduled()
        )
    page = url.removesuffix("/api")
    return f"flow run {run.id} ({config.run.name}): {page}/runs/flow-run/{run.id}"


def resume(run: str | None, *, labels: str | None = None) -> list[Told]:
    """Resume the suspended run named, or all, where the rankings are there.

    Raises:
        LabelError: `labels` is not the frozen set of the round the run waits for.
        ServerError: the server is away or refuses us, or knows no such run.
    """
    url = require_server_named()
    with server_errors(url), get_client(sync_client=True) as client:
        if run is None:
            if labels is not None:
                raise LabelError("--labels means one run's label set: name the run")
            suspended = _runs(client, StateType.PAUSED)
            told = [_told(reconciler.resume_if_ranked(client, one)) for one in suspended]
            return told or [Told(text="no run is suspended")]
        flow_run = _named_run(client, run)
        if flow_run.state.type != StateType.PAUSED:
            return [
                Told(text=f"{run} does not wait: it is {flow_run.state.name}; nothing was done")
            ]
        return [_told(reconciler.resume_if_ranked(client, flow_run, expected=labels))]


def reconcile(*, tick_s: float, max_restarts: int, metrics_port: int | None, store: Path) -> None:
    """The reconciler as a long-lived process, until SIGTERM or Ctrl-C."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _interrupt)
    show = None
    if metrics_port is not None:
        from flows.metrics_endpoint import MetricsEndpoint

        show = MetricsEndpoint(metrics_port, store).show
    reconciler.watch(tick_s=tick_s, max_restarts=max_restarts, show=show or (lambda seen: None))


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _told(seen: Seen) -> Told:
    waiting = seen.action == "waiting"
    if waiting:
        text = (
            f"{seen.run} waits: {seen.rankings_done} of {seen.rankings_wanted} rankings of round "
            f"{seen.round_id}"
        )
    elif seen.action == "resumed":
        text = f"{seen.run} resumed with {seen.rankings_done} rankings, {seen.detail}"
    else:
        text = f"{seen.run}: {seen.detail or seen.state}"
    return Told(text=text, is_waiting=waiting)


def _named_run(client: SyncPrefectClient, name: str) -> Any:
    """The run with this id, or the newest of this name in its settings or in Prefect."""
    try:
        return client.read_flow_run(UUID(name))
    except (ValueError, ObjectNotFound):
        pass
    runs = _runs(client, *StateType)
    for run in runs:
        if name in (reconciler.run_name(run), run.name):
            return run
    known = ", ".join(dict.fromkeys(reconciler.run_name(run) for run in runs)) or "none"
    raise ServerError(f"the server knows no deployed run {name!r}; runs there: {known}")


def _runs(client: SyncPrefectClient, *kinds: StateType) -> Sequence[Any]:
    """Deployed runs in these states, newest first."""
    from prefect.client.schemas.sorting import FlowRunSort

    return client.read_flow_runs(
        flow_filter=FlowFilter.model_validate({"name": {"any_": list(FLOWS)}}),
        flow_run_filter=FlowRunFilter.model_validate(
            {"state": {"type": {"any_": [kind.value for kind in kinds]}}}
        ),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=200,
    )
