"""Open everything a run needs, and close it whatever happens."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, cast

from rich.console import Console

from alignment.config import PipelineConfig
from flows.engines import Engines
from flows.loggers import Loggers
from flows.memory import MemorySampler
from flows.progress import Progress
from flows.run_context import OnlyStageDone, RunContext
from flows.run_record import RunOptions, open_run
from flows.shared_store import open_store
from flows.timing import WorkClock


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
    shown = options.dashboard
    lines = Console(file=cast(IO[str], shown), width=160, highlight=False)
    return Progress(lines, observe=shown.progress, announce=shown.said)
