"""Commands of whoever operates the pipeline: services, deployed runs, and what is wrong here."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

from flows.exit_codes import FAILED, WAITING_FOR_PEOPLE

DEFAULT_PORTS = {
    "server": (4200, "Prefect server"),
    "label": (7861, "ranking page"),
    "ray": (6379, "Ray head"),
    "ray-dashboard": (8265, "its pages"),
    "metrics": (9108, "Prometheus metrics"),
}
MakeCommand = Callable[[str, str, str], ArgumentParser]


def add_operator_commands(command: MakeCommand) -> None:
    """Adds the commands; `command(name, summary, details)` makes each parser."""
    _add_up(command)
    _add_down(command)
    _add_submit(command)
    _add_resume(command)
    _add_reconcile(command)
    _add_doctor(command)


def _add_up(command: MakeCommand) -> None:
    parser = command(
        "up",
        "start Prefect server, Ray head, worker, ranking page and reconciler of this machine",
        "They are supervised (restarted with growing pauses) and serve one store. A port of 0 "
        "takes a free one.\n\nexamples:\n  alignflow up\n  alignflow up --no-ray --server-port 0",
    )
    _add_store(parser)
    parser.add_argument("--no-ray", action="store_true", help="each run starts a Ray of its own")
    parser.add_argument("--label-host", default="127.0.0.1", help="ranking page (127.0.0.1)")
    for name, (port, what) in DEFAULT_PORTS.items():
        parser.add_argument(f"--{name}-port", type=int, default=port, help=f"{what} ({port})")
    parser.add_argument(
        "--object-store-gib", type=float, default=1.5, help="shared memory of the Ray head (1.5)"
    )
    _add_reconciling(parser)
    parser.add_argument(
        "--foreground", action="store_true", help="stay, e.g. below systemd; SIGTERM ends all"
    )
    parser.set_defaults(handler=_up)


def _add_down(command: MakeCommand) -> None:
    parser = command(
        "down",
        "end exactly what `up` started; runs at work go on after the next `up`",
        "example:\n  alignflow down --store store",
    )
    _add_store(parser)
    parser.set_defaults(handler=_down)


def _add_submit(command: MakeCommand) -> None:
    parser = command(
        "submit",
        "start a run of a deployment with the settings of a CONFIG",
        "As `prefect deployment run align/pipeline`, with settings from TOML.\n\n"
        "examples:\n  alignflow submit quickstart_people --set run.name=first\n"
        "  alignflow submit quickstart --stage sft",
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="TOML file or shipped name")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--stage", help="this stage alone; those before it must be in the store")
    _add_store(parser)
    parser.set_defaults(handler=_submit)


def _add_resume(command: MakeCommand) -> None:
    parser = command(
        "resume",
        "resume suspended runs whose rounds are ranked, as the reconciler does",
        "Exit code 75 while rankings are missing.\n\n"
        "examples:\n  alignflow resume\n  alignflow resume first --labels DIGEST",
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help="name or flow run id; absent: all")
    parser.add_argument("--labels", metavar="DIGEST", help="refuse any other frozen label set")
    _add_store(parser)
    parser.set_defaults(handler=_resume)


def _add_reconcile(command: MakeCommand) -> None:
    parser = command(
        "reconcile",
        "keep resuming ranked runs and restarting crashed ones, until stopped",
        "Started by `alignflow up`. One is enough; several do no harm.\n\n"
        "example:\n  alignflow reconcile --store store",
    )
    _add_store(parser)
    _add_reconciling(parser)
    parser.add_argument("--metrics-port", type=int, help="serve Prometheus metrics there")
    parser.set_defaults(handler=_reconcile)


def _add_doctor(command: MakeCommand) -> None:
    parser = command(
        "doctor",
        "look at versions, devices, memory, ports and services, and say what to mend",
        "Exit code 1 if something will not work.\n\nexample:\n  alignflow doctor --store store",
    )
    _add_store(parser)
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.set_defaults(handler=_doctor)


def _add_store(parser: ArgumentParser) -> None:
    parser.add_argument("--store", type=Path, default=Path("store"), help="the store (store)")


def _add_reconciling(parser: ArgumentParser) -> None:
    parser.add_argument("--tick-s", type=float, default=10.0, help="seconds between looks (10)")
    parser.add_argument(
        "--max-restarts", type=int, default=10, help="of a run that keeps crashing (10)"
    )


def _up(arguments: Namespace) -> int:
    from flows.services import up

    return up(arguments)


def _down(arguments: Namespace) -> int:
    from flows.services import down

    return down(arguments)


def _submit(arguments: Namespace) -> int:
    from alignment.config import load_config
    from flows.services import use_running_services
    from flows.shipped_configs import config_path

    config = load_config([config_path(name) for name in arguments.configs], arguments.overrides)
    use_running_services(arguments.store)
    from flows.deployed_client import submit

    print(submit(config, stage=arguments.stage))
    return 0


def _resume(arguments: Namespace) -> int:
    from flows.services import use_running_services

    use_running_services(arguments.store)
    from flows.deployed_client import resume

    seen = resume(arguments.run, labels=arguments.labels)
    for one in seen:
        print(one.text)
    if any(one.is_waiting for one in seen):
        return WAITING_FOR_PEOPLE
    return FAILED if any(one.is_refused for one in seen) else 0


def _reconcile(arguments: Namespace) -> int:
    from flows.services import use_running_services

    use_running_services(arguments.store)
    from flows.deployed_client import reconcile

    try:
        reconcile(
            tick_s=arguments.tick_s,
            max_restarts=arguments.max_restarts,
            metrics_port=arguments.metrics_port,
            store=arguments.store,
        )
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    return 0


def _doctor(arguments: Namespace) -> int:
    from flows.doctor import doctor

    return doctor(arguments.store, as_json=arguments.json)
