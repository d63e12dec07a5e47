"""`alignflow label ...` beside `serve`: rounds, invitations, publishing and exporting."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from alignment.errors import StoreError

if TYPE_CHECKING:
    from labeling_ui.store import LabelStore

MakeCommand = Callable[[str, str, str], ArgumentParser]


def add_label_commands(command: MakeCommand) -> None:
    """Adds the subcommands; `command(name, summary, details)` makes each parser."""
    rounds = command(
        "rounds", "list rounds and how far they are", "example:\n  alignflow label rounds"
    )
    _add_place(rounds)
    rounds.set_defaults(handler=show_rounds)

    invite = command(
        "invite",
        "make an invitation: a name chooses its password by it, once",
        "Open the printed path on the server's address.\n\n"
        "example:\n  alignflow label invite Ada --role lead",
    )
    _add_place(invite)
    invite.add_argument("name", metavar="NAME", help="who is invited")
    invite.add_argument("--role", default="labeler", choices=["labeler", "lead"])
    invite.set_defaults(handler=invite_person)

    publish = command(
        "publish",
        "publish a candidates table as a round for people",
        "example:\n  alignflow label publish candidates.parquet --overlap 3 --attention-share 0.05",
    )
    _add_place(publish)
    publish.add_argument("candidates", type=Path, metavar="FILE", help="candidates.parquet")
    publish.add_argument("--name", default="", help="shown to leads")
    publish.add_argument("--overlap", type=int, default=1, help="rankings a prompt (1)")
    for share in ("attention", "repeat"):
        publish.add_argument(
            f"--{share}-share", type=float, default=0.0, help=f"share of {share} cards (0)"
        )
    for asked in ("strength", "rationale"):
        publish.add_argument(
            f"--{asked}", default="optional", choices=["off", "optional", "required"]
        )
    publish.add_argument("--criteria", default="", metavar="A,B", help="scored from 1 to 5")
    publish.set_defaults(handler=publish_round)

    export = command(
        "export",
        "write a round's labels as Parquet into a new folder",
        "preference_groups.parquet in it is what --set data.source=parquet reads.\n\n"
        "example:\n  alignflow label export ROUND --out labels/",
    )
    _add_place(export)
    export.add_argument("round", metavar="ROUND", help="as `alignflow label rounds` names it")
    export.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    export.add_argument("--without", action="append", default=[], metavar="PSEUDONYM")
    export.add_argument("--heldout-share", type=float, default=0.1, help="of prompts (0.1)")
    export.add_argument("--seed", type=int, default=0, help="of the split (0)")
    export.set_defaults(handler=export_labels)


def _add_place(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--store", type=Path, default=Path("store"), help="store of the run (store)"
    )
    parser.add_argument(
        "--database", metavar="URL", help="label database elsewhere: a path or postgresql://..."
    )


def open_labels(arguments: Namespace, *, create: bool = False) -> "LabelStore":
    """The label database that --database or --store names.

    Raises:
        StoreError: there is none, and it is not to be created.
    """
    from flows.stages.preferences import label_store_path
    from labeling_ui.store import LabelStore

    if arguments.database:
        return LabelStore.open(arguments.database)
    path = label_store_path(arguments.store)
    if not create and not path.exists():
        raise StoreError(f"{path} does not exist: no round was published there; name --store")
    return LabelStore.open(path)


def show_rounds(arguments: Namespace) -> int:
    """One line a round, newest first."""
    with open_labels(arguments) as labels:
        for status in labels.rounds():
            print(
                f"{status.round_id}  {status.state:<7} {status.rankings_done} of "
                f"{status.rankings_wanted} rankings, {status.labelers} labelers  {status.name}"
                + (f"  ({status.panel})" if status.panel else "")
            )
    return 0


def invite_person(arguments: Namespace) -> int:
    """Prints the path of an invitation."""
    from labeling_ui.accounts import invite

    with open_labels(arguments, create=True) as labels:
        key = invite(labels, arguments.name, role=arguments.role, actor="command line")
    print(f"/join?key={key}")
    return 0


def publish_round(arguments: Namespace) -> int:
    """Publishes a candidates table; the same one again gives the round there is."""
    from alignment.data.tables import read_records
    from alignment.records import CandidateSet
    from labeling_ui.checks import attention_items
    from labeling_ui.judgement import RoundSettings

    candidates = read_records(arguments.candidates, CandidateSet)
    settings = RoundSettings(
        attention_share=arguments.attention_share,
        repeat_share=arguments.repeat_share,
        strength=arguments.strength,
        rationale=arguments.rationale,
        criteria=tuple(name.strip() for name in arguments.criteria.split(",") if name.strip()),
    )
    wanted = round(len(candidates) * settings.attention_share) + 1
    checks = attention_items(candidates, wanted) if settings.attention_share else []
    with open_labels(arguments, create=True) as labels:
        status = labels.publish_round(
            candidates,
            rankings_per_prompt=arguments.overlap,
            name=arguments.name,
            settings=settings,
            checks=checks,
        )
    print(f"round {status.round_id}: {status.rankings_wanted} rankings of {status.tasks} prompts")
    return 0


def export_labels(arguments: Namespace) -> int:
    """Writes a round's tables, and the groups that reward-model training reads."""
    from labeling_ui.parquet_export import ExportFilter
    from labeling_ui.training_tables import write_training_tables

    chosen = ExportFilter(
        without=tuple(sorted(arguments.without)),
        heldout_share=arguments.heldout_share,
        seed=arguments.seed,
    )
    with open_labels(arguments) as labels:
        manifest = write_training_tables(labels, arguments.round, arguments.out, chosen)
    for name, told in manifest["files"].items():
        print(f"{told['rows']:>7} {name}")
    print(f"in {arguments.out}")
    return 0
