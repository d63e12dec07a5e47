"""Stages as Prefect tasks, done in this process or, those with engines, as Ray jobs."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps
from typing import Any, TypeVar, cast

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import TerminationSignal

from flows.manifest import Artifact
from flows.run_context import RunContext

StageT = TypeVar("StageT", bound=Callable[..., Any])


def engine_task(stage: StageT) -> StageT:
    """A stage that starts engines: a Ray job where `cluster.job_server` is set."""

    def placed(run: RunContext, *inputs: Any) -> Artifact:
        if run.config.cluster.job_server is not None:
            from flows.stage_jobs import do_as_job

            run = replace(run, elsewhere=partial(do_as_job, run, stage, inputs))
        artifact: Artifact = stage(run, *inputs)
        return artifact

    return cast(StageT, stage_task(wraps(stage)(placed)))


def stage_task(stage: StageT) -> StageT:
    """The stage as a Prefect task. Our store decides reuse, so Prefect caches nothing."""

    def shown(run: RunContext, *inputs: Any) -> Artifact:
        artifact: Artifact = stage(run, *inputs)
        if run.options.dashboard is not None:
            run.options.dashboard.stage_ended(artifact, reused=artifact.stage in run.reused)
        return artifact

    as_task = task(
        shown,
        name=stage.__name__,
        cache_policy=NO_CACHE,
        persist_result=False,
        log_prints=False,
        retries=0,
    )

    @wraps(stage)
    def call(run: RunContext, *inputs: Any) -> Artifact:
        try:
            artifact: Artifact = as_task(run, *inputs)
        except Exception as error:
            raise_termination_behind(error)
            raise
        run.stop_if_only(artifact)
        return artifact

    return cast(StageT, call)


def raise_termination_behind(error: BaseException) -> None:
    """Raise the SIGTERM that `error` took the place of, if there is one.

    Prefect 3.7 fails with an error of its own where the signal comes while it creates a task's run.
    """
    seen: set[int] = set()
    behind: BaseException | None = error
    while behind is not None and id(behind) not in seen:
        if isinstance(behind, TerminationSignal):
            raise behind
        seen.add(id(behind))
        behind = behind.__cause__ or behind.__context__
