"""The `alignflow` command: reads the command line, then loads only what the command needs.

Exit codes: 0 done; 1 refused, failed, or a check of the run failed; others in `exit_codes`.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

from alignment.errors import AlignmentError
from flows.exit_codes import FAILED, INTERRUPTED, WAITING_FOR_PEOPLE
from flows.label_commands import add_label_commands
from flows.operator_commands import add_operator_commands
from flows.shipped_configs import shipped_configs
from flows.store_commands import add_store_commands
from flows.waiting import WaitingForPeople

_DESCRIPTION = """\
RLHF as a pipeline: SFT, candidates, rankings by people, reward model, PPO, evaluation.

Every finished stage is kept in a store and reused; an interrupted one is resumed. To go on after
an error, Ctrl-C or a restart, run the same command again.
"""

_EXAMPLES = """\
examples:
  alignflow run quickstart                        simulated rankings, small model, minutes
  alignflow run quickstart_people --serve-labels  the same with you ranking in a browser
  alignflow run quickstart --set ppo.steps=14 --run longer
  alignflow config quickstart                     every setting, and the sizes that follow
  alignflow plan quickstart                       memory, placement and time, before it starts
  alignflow report quickstart                     results of a finished run
  alignflow lineage quickstart                    from the policy back to data and rankings
  alignflow release quickstart --out model/       the policy as a folder that others load
  alignflow store gc --dry-run                    what no run needs any more

Results lie in runs/<name>/ (run.json, metrics/, summary.json, report.html), finished stages in
store/. Both places are settings: --set run.store=/data/store --set run.runs=/data/runs

exit codes: 0 done, 1 failed, 2 wrong usage, 75 waiting for people, 130 interrupted
"""

_RUN_EXAMPLES = """\
A CONFIG is a TOML file or the name of a shipped one: {names}.
Several are read from left to right, then --set; the last one wins.

examples:
  alignflow run quickstart
  alignflow run quickstart my_changes.toml --set run.seed=1 --set ppo.optimizer.learning_rate=2e-5
  alignflow run hh_harmless --set data.path=hh_harmless_pairs.jsonl.gz
  alignflow run quickstart_people --serve-labels --no-browser
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the process's exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = command_parser().parse_args(given)
    parsed.command_line, parsed.given = shlex.join(["alignflow", *given]), given
    try:
        return int(parsed.handler(parsed) or 0)
    except WaitingForPeople as waiting:
        print(waiting, file=sys.stderr)
        return WAITING_FOR_PEOPLE
    except AlignmentError as error:
        print(f"alignflow: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"\ninterrupted; to go on, run again: {parsed.command_line}", file=sys.stderr)
        return INTERRUPTED


def command_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="alignflow",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_run(commands)
    _add_config(commands)
    _add_plan(commands)
    _add_report(commands)
    add_store_commands(partial(_command, commands))
    _add_import(commands)
    _add_label(commands)
    add_operator_commands(partial(_command, commands))
    return parser


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _add_run(commands: Commands) -> None:
    parser = _command(
        commands,
        "run",
        "run the pipeline, or go on with it",
        _RUN_EXAMPLES.format(names=", ".join(shipped_configs())),
    )
    _add_config_arguments(parser)
    parser.add_argument("--run", metavar="NAME", help="the run's name (setting run.name)")
    parser.add_argument(
        "--serve-labels",
        action="store_true",
        help="serve the ranking page and wait, instead of stopping with code 75",
    )
    parser.add_argument(
        "--no-browser", action="store_true", help="with --serve-labels: only print the address"
    )
    parser.set_defaults(handler=_run)


def _add_config(commands: Commands) -> None:
    parser = _command(
        commands,
        "config",
        "print the resolved settings as TOML, and the sizes that follow from them",
        "example:\n  alignflow config quickstart --set ppo.prompts_per_step=64",
    )
    _add_config_arguments(parser)
    parser.set_defaults(handler=_config)


_PLAN_EXAMPLES = """\
Predicts memory of each role against its device, placement, seconds of a PPO step by phase, and
settings that fit. CLUSTER is a file of Ray's cluster launcher; without it, this machine counts.
Exit code 1 where the run is predicted not to fit.

examples:
  alignflow plan quickstart
  alignflow plan my_run.toml --cluster cluster.yaml --gpu A100-80G --model-shape qwen2.5-7b
  alignflow plan quickstart --against quickstart     how far the plan was from a finished run
"""


def _add_plan(commands: Commands) -> None:
    parser = _command(
        commands, "plan", "show what a run will need, and what would fit", _PLAN_EXAMPLES
    )
    _add_config_arguments(parser)
    parser.add_argument("--cluster", type=Path, metavar="FILE", help="machines to plan for")
    parser.add_argument("--gpu", metavar="NAME", help="kind of GPU where CLUSTER names none")
    parser.add_argument(
        "--model-shape", metavar="NAME", help="a public model in place of model.source"
    )
    parser.add_argument(
        "--prompt-tokens", type=float, metavar="MEAN", help="mean prompt length, if known"
    )
    parser.add_argument(
        "--response-tokens", type=float, metavar="MEAN", help="mean response length, if known"
    )
    parser.add_argument("--against", metavar="RUN", help="compare with a finished run's record")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.set_defaults(handler=_plan)


def _add_report(commands: Commands) -> None:
    parser = _command(
        commands,
        "report",
        "print the results of a finished run and where its report lies",
        "examples:\n  alignflow report quickstart\n  alignflow report /data/runs/quickstart --json",
    )
    _add_run_arguments(parser)
    parser.set_defaults(handler=_report)


def _add_import(commands: Commands) -> None:
    parser = _command(
        commands,
        "import",
        "turn a data file into checked tables; says what was refused and why",
        "Use the tables with --set data.source=parquet --set data.path=FOLDER.\n\n"
        "example:\n  alignflow import hh-rlhf pairs.jsonl.gz --out data/harmless",
    )
    parser.add_argument("format", choices=["hh-rlhf", "parquet"], help="format of the file")
    parser.add_argument("file", type=Path, help="file, or folder of tables, to read")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new folder")
    parser.add_argument("--seed", type=int, default=0, help="seed of shuffle and split (0)")
    parser.set_defaults(handler=_import)


def _add_label(commands: Commands) -> None:
    label = _command(commands, "label", "rank responses", "example:\n  alignflow label serve")
    actions = label.add_subparsers(title="commands", metavar="COMMAND", required=True)
    parser = _command(
        actions,
        "serve",
        "serve the ranking page until Ctrl-C",
        "Rankings are kept in the store; a run that waits goes on with its own command.\n\n"
        "example:\n  alignflow label serve --store store --port 7861",
    )
    parser.add_argument(
        "--store", type=Path, default=Path("store"), help="store of the run (store)"
    )
    parser.add_argument("--database", metavar="URL", help="label database at postgresql://...")
    parser.add_argument("--round", metavar="ID", help="round to rank (the newest open one)")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at (127.0.0.1)")
    parser.add_argument("--port", type=int, default=7861, help="port; 0 takes a free one (7861)")
    parser.add_argument(
        "--accounts", action="store_true", help="let nobody in without a password (see invite)"
    )
    parser.add_argument(
        "--simulated", action="store_true", help="serve a simulated round to simulated labelers"
    )
    parser.set_defaults(handler=_label_serve)
    add_label_commands(partial(_command, actions))


def _command(commands: Commands, name: str, summary: str, details: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="TOML file or shipped name")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="one setting, e.g. ppo.steps=10; may be repeated",
    )


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="name below --runs, or a run's folder")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs (runs)")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def _run(arguments: argparse.Namespace) -> int:
    from flows.commands import run

    return run(arguments)


def _config(arguments: argparse.Namespace) -> int:
    from flows.commands import show_config

    return show_config(arguments)


def _plan(arguments: argparse.Namespace) -> int:
    from flows.commands import show_plan

    return show_plan(arguments)


def _report(arguments: argparse.Namespace) -> int:
    from flows.commands import report

    return report(arguments)


def _import(arguments: argparse.Namespace) -> int:
    from flows.commands import import_data

    return import_data(arguments)


def _label_serve(arguments: argparse.Namespace) -> int:
    from flows.commands import serve_labels

    return serve_labels(arguments)


if __name__ == "__main__":
    sys.exit(main())
