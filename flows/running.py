"""Open everything a run needs, close it whatever happens, and wrap stages as Prefect tasks."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import IO, Any, TypeVar, cast

from prefect import task
from prefect.cache_policies import NO_CACHE
from rich.console import Console

from alignment.config import PipelineConfig
from flows.engines import Engines
from flows.loggers import Loggers
from flows.manifest import Artifact
from flows.memory import MemorySampler
from flows.progress import Progress
from flows.run_context import OnlyStageDone, RunContext
from flows.run_record import RunOptions, open_run
from flows.shared_store import open_store
from flows.timing import WorkClock

StageT = TypeVar("StageT", bound=Callable[..., Any])


@contextmanager
def running(config: PipelineConfig, options: RunOptions) -> Iterator[RunContext]:
    """One invocation of the run: its record, store, clock, memory sampler and engines."""
    with ExitStack() as stack:
        clock = WorkClock()
        record = stack.enter_context(open_run(config, options))
        loggers = stack.enter_context(Loggers(config.run, record.folder))
        memory = stack.enter_context(MemorySampler())
        progress = stack.enter_context(_progress(options))
        engines = Engines(
            config.cluster,
            clock=clock,
            memory=memory,
            logs=record.folder / "logs",
            shared_store=config.run.shared_store,
        )
        stack.callback(engines.close)
        try:
            yield RunContext(
                config=config,
                options=options,
                record=record,
                store=open_store(config.run),
                engines=engines,
                clock=clock,
                memory=memory,
                progress=progress,
                loggers=loggers,
            )
        except OnlyStageDone:
            progress.say(f"{options.only} is done; the stages after it were not asked for")


def _progress(options: RunOptions) -> Progress:
    """The console, or where a dashboard shows the run, its log."""
    if options.dashboard is None:
        return Progress()
    lines = Console(file=cast(IO[str], options.dashboard), width=160, highlight=False)
    return Progress(lines, observe=options.dashboard.progress)


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
        artifact: Artifact = as_task(run, *inputs)
        run.stop_if_only(artifact)
        return artifact

    return cast(StageT, call)
