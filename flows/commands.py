"""What the commands of `alignflow` do; each loads its own needs when it runs."""

import contextlib
import json
import os
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from alignment.config import DataConfig, PipelineConfig, load_config
from alignment.errors import DataError, StoreError
from flows.environment import prepare_environment
from flows.exit_codes import FAILED
from flows.interruption import interruptible
from flows.planning import make_plan, plan_json, refuse_what_cannot_fit
from flows.prefect_server import prefect_api, without_heartbeats
from flows.run_record import RunOptions, RunOutcome, read_run
from flows.shipped_configs import config_path
from flows.summary import read_summary

REPORT_NAME = "report.html"


@contextlib.contextmanager
def until_nobody_reads() -> Iterator[None]:
    """End quietly where the output's reader ends first, e.g. `alignflow config x | head`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(arguments: Namespace) -> int:
    """Run the pipeline in this process; fails if one of the run's own checks does."""
    overrides = list(arguments.overrides)
    if arguments.run is not None:
        overrides.append(f"run.name={json.dumps(arguments.run)}")
    config = load_config([config_path(name) for name in arguments.configs], overrides)
    for warning in refuse_what_cannot_fit(config):
        print(f"alignflow: memory may get tight: {warning}", file=sys.stderr)
    options = RunOptions(
        serve_labels=arguments.serve_labels,
        open_browser=not arguments.no_browser,
        command=arguments.command_line,
    )
    with interruptible():
        outcome = _run_flow(config, options)
    return _tell_outcome(outcome)


@until_nobody_reads()
def show_config(arguments: Namespace) -> int:
    """Print resolved settings and derived sizes."""
    from flows.derived_sizes import derived_sizes
    from flows.toml_text import toml_text

    config = load_config([config_path(name) for name in arguments.configs], arguments.overrides)
    print(toml_text(config))
    for name, value in derived_sizes(config):
        print(f"# {name}: {value}")
    return 0


@until_nobody_reads()
def show_plan(arguments: Namespace) -> int:
    """Print what a run will need, or how far a plan was from a finished run."""
    from rich.console import Console

    from alignment.planning.cluster_file import read_cluster_file
    from alignment.planning.machines import local_machine
    from flows.plan_against import compare_with_run, print_check
    from flows.plan_table import print_plan

    config = load_config([config_path(name) for name in arguments.configs], arguments.overrides)
    machines = (
        read_cluster_file(arguments.cluster, gpu=arguments.gpu)
        if arguments.cluster
        else local_machine()
    )
    console = Console(highlight=False)
    if arguments.against is not None:
        check = compare_with_run(config, machines, named_run(arguments.against, config.run.runs))
        if arguments.json:
            print(json.dumps(check.as_json(), indent=2))
        else:
            print_check(console, check)
        return 0
    plan = make_plan(
        config,
        machines,
        model_shape=arguments.model_shape,
        prompt_tokens=arguments.prompt_tokens,
        response_tokens=arguments.response_tokens,
    )
    if arguments.json:
        print(json.dumps(plan_json(plan), indent=2))
    else:
        print_plan(console, plan)
    return 0 if plan.fits else FAILED


@until_nobody_reads()
def report(arguments: Namespace) -> int:
    """Print a finished run's results."""
    from rich.console import Console

    from flows.results import print_results

    folder = _run_folder(arguments)
    summary = read_summary(folder)
    if arguments.json:
        print(summary.model_dump_json(indent=2))
        return 0
    page = folder / REPORT_NAME
    print_results(Console(highlight=False), summary, page if page.exists() else None)
    return 0


def import_data(arguments: Namespace) -> int:
    """Write checked tables into a new folder, whole or not at all."""
    from alignment.data.importing import REFUSED_FILE, prepare, write_prepared

    out: Path = arguments.out
    if out.exists():
        raise DataError(f"{out} exists already; name a new folder with --out")
    prepared = prepare(
        DataConfig(source=arguments.format, path=arguments.file), seed=arguments.seed
    )
    partial = out.with_name(f".{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    write_prepared(partial, prepared)
    partial.rename(out)
    print(
        f"{len(prepared.demonstrations)} demonstrations, {len(prepared.train_prompts)} prompts, "
        f"{len(prepared.heldout_prompts)} held-out prompts and {len(prepared.preference_groups)} "
        f"ranked groups in {out}"
    )
    reasons = Counter(refusal.reason for refusal in prepared.refused)
    if reasons:
        print(f"{reasons.total()} refused, each listed in {out / REFUSED_FILE}:")
        for reason, count in reasons.most_common():
            print(f"  {count} x {reason}")
    return 0


def serve_labels(arguments: Namespace) -> int:
    """Serve the ranking page of a store until Ctrl-C."""
    from flows.stages.preferences import label_store_path
    from labeling_ui.server import serve

    path = label_store_path(arguments.store)
    found = path.exists() or any(arguments.store.rglob("candidates.parquet"))
    if not arguments.database and not found:
        raise StoreError(
            f"{path} does not exist: nothing waits to be ranked there. Start a run with "
            '`preferences.source = "people"` first, or name its store with --store'
        )
    with contextlib.suppress(KeyboardInterrupt):
        serve(
            arguments.database or path,
            arguments.round,
            host=arguments.host,
            port=arguments.port,
            accounts_only=arguments.accounts,
            simulated=arguments.simulated,
            artifacts=arguments.store,
        )
    return 0


def _run_flow(config: PipelineConfig, options: RunOptions) -> RunOutcome:
    prepare_environment(config)
    with prefect_api(config.run.store.absolute() / "prefect") as server:
        from flows import pipeline  # takes seconds, in which the server starts

        if server is None:
            return pipeline.run(config, options)
        server.wait_until_ready()
        with without_heartbeats():
            return pipeline.run(config, options)


def _tell_outcome(outcome: RunOutcome) -> int:
    from rich.console import Console

    from flows.results import print_results

    summary = read_summary(outcome.folder)
    print_results(Console(highlight=False), summary, outcome.report)
    failed = [name for name, check in summary.checks.items() if not check.passed]
    if failed:
        print(f"alignflow: the run's check {', '.join(failed)} failed", file=sys.stderr)
    return FAILED if failed else 0


def _run_folder(arguments: Namespace) -> Path:
    return named_run(arguments.run, arguments.runs)


def named_run(name: str, runs: Path) -> Path:
    """The folder of a run, given by itself or by its name; refuses a name that no run has."""
    folder = Path(name) if Path(name).is_dir() else runs / name
    read_run(folder.absolute())
    return folder.absolute()
