"""Open everything a run needs, close it whatever happens, and wrap stages as Prefect tasks."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE

from alignment.config import PipelineConfig
from flows.engines import Engines
from flows.loggers import Loggers
from flows.memory import MemorySampler
from flows.progress import Progress
from flows.run_context import RunContext
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
        progress = stack.enter_context(Progress())
        engines = Engines(config.cluster, clock=clock, memory=memory, logs=record.folder / "logs")
        stack.callback(engines.close)
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


def stage_task(stage: StageT) -> StageT:
    """The stage as a Prefect task. Our store decides reuse, so Prefect caches nothing."""
    wrapped: StageT = task(
        stage,
        name=stage.__name__,
        cache_policy=NO_CACHE,
        persist_result=False,
        log_prints=False,
        retries=0,
    )
    return wrapped
