"""A run of a deployment: who works on it, with which code, and what may be tried again.

It may be suspended for days, restarted after a crash, and each time another process runs the
body from the top. What it has to remember lies with the run in Prefect's database.
"""

import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger

from alignment.cluster.process_identity import identity_of
from alignment.config import PipelineConfig
from alignment.errors import AbsentClusterError, LostActorError, StoreError
from flows.environment import (
    LABEL_URL_VARIABLE,
    RAY_ADDRESS_VARIABLE,
    RAY_DASHBOARD_VARIABLE,
    prepare_environment,
)
from flows.run_notes import keep_note, read_note
from flows.run_record import RunOptions

STAGES = (
    "base_model",
    "data",
    "sft",
    "candidates",
    "preferences",
    "reward_model",
    "ppo",
    "evaluation",
)
PROCESS_KEY = "process-"
VERSIONS_KEY = "stage-versions"
_TRIES = 6
_PAUSE_S = 10.0
"""All pauses together outlast the restart of a Ray head."""


def deployed_run(config: PipelineConfig, *, only: str | None = None) -> str:
    """The pipeline's body in the flow run at hand; gives the run's folder.

    A stage that lost an actor's process is tried again from its newest checkpoint, a few times.

    Raises:
        StoreError: the code of a stage changed while the run waited.
    """
    config = on_this_machine(config)
    prepare_environment(config)
    from flows import pipeline
    from flows.dashboard import PrefectDashboard

    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    logger = get_run_logger()
    with get_client(sync_client=True) as client:
        note_process(client, context.flow_run)
        require_same_stages(client, context.flow_run.id)
        resumed_with = _resumed_with(client, context.flow_run.id)
    dashboard = PrefectDashboard(logger)
    show_links(config, dashboard.link)
    options = RunOptions(
        command=f"prefect flow run {context.flow_run.id}",
        only=only,
        resumed_with=resumed_with,
        dashboard=dashboard,
    )
    tried_again(lambda: pipeline.alignment_pipeline.fn(config, options), logger.warning)
    return str(config.run.runs.absolute() / config.run.name)


def on_this_machine(config: PipelineConfig) -> PipelineConfig:
    """The settings with the Ray head of this machine's services, where they name none."""
    address = os.environ.get(RAY_ADDRESS_VARIABLE)
    named = config.cluster.address or config.cluster.job_server
    if address is None or named is not None or config.cluster.backend != "ray":
        return config
    cluster = config.cluster.model_copy(update={"address": address})
    return config.model_copy(update={"cluster": cluster})


def show_links(config: PipelineConfig, link: Callable[[str, str, str], None]) -> None:
    """Show where people rank and where Ray shows the roles, as far as this machine knows it."""
    labels = os.environ.get(LABEL_URL_VARIABLE)
    if labels and config.preferences.source == "people":
        link("ranking-page", labels, "where people rank this run's responses")
    ray = config.cluster.job_server or os.environ.get(RAY_DASHBOARD_VARIABLE)
    if ray and config.cluster.backend == "ray":
        link("ray-dashboard", ray, "the roles' processes, their logs and what they use")


def tried_again(body: Callable[[], Any], warn: Callable[[str], None]) -> None:
    """Run the body, again and from what is finished whenever an actor or Ray itself was lost.

    Raises:
        LostActorError: the last of a bounded number of tries lost one, too.
        AbsentClusterError: nor did Ray answer at the last one.
    """
    for tried in range(1, _TRIES + 1):
        try:
            body()
        except (LostActorError, AbsentClusterError) as lost:
            if tried == _TRIES:
                raise
            warn(f"{lost}\nTrying again from what is finished ({tried} of {_TRIES - 1}).")
            time.sleep(_PAUSE_S)
        else:
            return


def note_process(client: SyncPrefectClient, flow_run: Any) -> None:
    """Write down which process works on the run, so that its death is noticed."""
    identity = identity_of(os.getpid())
    if identity is None:
        return
    note = asdict(identity) | {"host": socket.gethostname()}
    key = f"{PROCESS_KEY}{flow_run.run_count}-{os.getpid()}-{identity.started}"
    keep_note(client, flow_run.id, key, note)


def require_same_stages(client: SyncPrefectClient, flow_run_id: UUID) -> None:
    """Go on with changed code only if no stage computes something else now.

    Raises:
        StoreError: a stage's version differs from that with which the run began; names it.
    """
    now = stage_versions()
    began = read_note(client, flow_run_id, VERSIONS_KEY)
    if began is None:
        keep_note(client, flow_run_id, VERSIONS_KEY, now)
        return
    changed = [
        f"{stage} has version {version}, the run began with {began[stage]}"
        for stage, version in now.items()
        if began.get(stage, version) != version
    ]
    if changed:
        raise StoreError(
            f"the code changed while this run waited: {'; '.join(changed)}. Put the code back "
            "with which it began and retry this run, or start a new run of the same settings: "
            "rankings and all stages that did not change are reused"
        )


def stage_versions() -> dict[str, int]:
    """The version of each stage's code."""
    return {name: import_module(f"flows.stages.{name}").VERSION for name in STAGES}


def _resumed_with(client: SyncPrefectClient, flow_run_id: UUID) -> dict[str, str]:
    from flows.suspension import labels_resumed_with

    return dict(labels_resumed_with(client, flow_run_id))
