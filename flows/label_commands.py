"""`alignflow label ...` beside `serve`: rounds, invitations, files in and out, simulation."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from alignment.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from alignment.config import PanelConfig
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

    _add_import_and_agreement(command)
    _add_simulate(command)

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


def _add_import_and_agreement(command: MakeCommand) -> None:
    imported = command(
        "import",
        "import rankings or votes that people made elsewhere, as a frozen round",
        "FORM is rankings (alignflow's own, see docs/labeling_guide.md), oasst, mt-bench or "
        "pandalm.\nA file with a bad record is refused whole, by line and field.\n\n"
        "example:\n  alignflow label import oasst trees.jsonl.gz",
    )
    _add_place(imported)
    imported.add_argument("form", metavar="FORM", help="what the file looks like")
    imported.add_argument("file", type=Path, metavar="FILE", help="JSON or JSON lines, also .gz")
    imported.add_argument("--name", default="", help="shown to leads (the file's name)")
    imported.set_defaults(handler=import_labels)

    agreement = command(
        "agreement",
        "print how far the labelers of a round agree: alpha and kappas with intervals",
        "example:\n  alignflow label agreement ROUND --json",
    )
    _add_place(agreement)
    agreement.add_argument("round", metavar="ROUND", help="as `alignflow label rounds` names it")
    agreement.add_argument("--json", action="store_true", help="print JSON for programs")
    agreement.set_defaults(handler=show_agreement)


def _add_simulate(command: MakeCommand) -> None:
    simulate = command(
        "simulate",
        "let the simulated panel rank: candidates through the service, or at a served page",
        "At a page, each labeler is a client that signs in, claims and submits over HTTP; only on "
        "this machine, bounded by --rankings and --seconds.\n\nexamples:\n"
        "  alignflow label simulate candidates.parquet --labelers 24 --overlap 3\n"
        "  alignflow label simulate candidates.parquet --labelers 24 --publish-only\n"
        "  alignflow label serve --simulated --round ROUND\n"
        "  alignflow label simulate --url http://127.0.0.1:7861/ --labelers 24 --think 0.5",
    )
    _add_place(simulate)
    simulate.add_argument(
        "candidates", type=Path, nargs="?", metavar="FILE", help="candidates.parquet to rank"
    )
    simulate.add_argument("--url", help="served page to rank at, instead of FILE")
    simulate.add_argument("--labelers", type=int, default=24, help="honest labelers (24)")
    simulate.add_argument("--spammers", type=int, default=0, help="who rank at random (0)")
    simulate.add_argument("--noise", type=float, default=0.12, help="of the gold score (0.12)")
    simulate.add_argument("--seed", type=int, default=0, help="of noise and pauses (0)")
    simulate.add_argument("--overlap", type=int, default=3, help="rankings a prompt (3)")
    simulate.add_argument("--publish-only", action="store_true", help="for a page to serve")
    simulate.add_argument("--rankings", type=int, default=1000, help="at a page, at most (1000)")
    simulate.add_argument("--seconds", type=float, default=60.0, help="at a page, at most (60)")
    simulate.add_argument("--think", type=float, default=0.5, help="mean seconds a card (0.5)")
    simulate.set_defaults(handler=simulate_panel)


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


def import_labels(arguments: Namespace) -> int:
    """Imports a file of rankings; the same file again gives the round there is."""
    from labeling_ui.ranking_files import read_ranking_file
    from labeling_ui.ranking_import import import_rankings

    file = read_ranking_file(arguments.file, arguments.form)
    with open_labels(arguments, create=True) as labels:
        name = arguments.name or arguments.file.name
        status = import_rankings(labels, file, name=name, actor="command line")
    print(
        f"round {status.round_id}: {status.rankings_done} rankings of {status.tasks} prompts by "
        f"{status.labelers} labelers"
    )
    for reason, count in file.left_out.items():
        print(f"left out: {count} {reason}")
    return 0


def show_agreement(arguments: Namespace) -> int:
    """Prints alpha by level, Fleiss' kappa, and Cohen's kappa of those who met most."""
    from labeling_ui.opinions import read_opinions
    from labeling_ui.round_agreement import round_agreement

    with open_labels(arguments) as labels:
        labels.progress(arguments.round)
        found = round_agreement(read_opinions(labels, arguments.round))
    if arguments.json:
        print(json.dumps(asdict(found), indent=1))
        return 0
    for level, alpha in found.alpha.items():
        told = "too little is judged twice"
        if alpha is not None:
            told = (
                f"{alpha.value:.3f} [{alpha.low:.3f}, {alpha.high:.3f}], {alpha.n} pairs of "
                f"{alpha.clusters} prompts"
            )
        print(f"Krippendorff's alpha, {level:<8} {told}")
    if found.fleiss is not None:
        print(
            f"Fleiss' kappa {found.fleiss:.3f}, {found.fleiss_pairs} pairs with "
            f"{found.fleiss_raters} verdicts"
        )
    for pair in sorted(found.cohen, key=lambda pair: -pair.pairs)[:10]:
        print(f"Cohen's kappa {pair.kappa:.3f}, {pair.first} and {pair.second}, {pair.pairs} pairs")
    return 0


def simulate_panel(arguments: Namespace) -> int:
    """Ranks a new simulated round, publishes one, or ranks at a served page."""
    from alignment.config import PanelConfig

    if (arguments.candidates is None) == (arguments.url is None):
        raise ConfigError("name either a candidates FILE or the --url of a served page")
    try:
        panel = PanelConfig(
            labelers=arguments.labelers, spammers=arguments.spammers, noise_sd=arguments.noise
        )
    except ValueError as error:
        raise ConfigError(f"the panel cannot be: {error}") from None
    if arguments.url is not None:
        return _simulate_at_page(arguments, panel)
    return _simulate_in_store(arguments, panel)


def _simulate_in_store(arguments: Namespace, panel: "PanelConfig") -> int:
    from alignment.data.tables import read_records
    from alignment.records import CandidateSet
    from labeling_ui.simulated_panel import panel_identity, rank_round

    with open_labels(arguments, create=True) as labels:
        status = labels.publish_round(
            read_records(arguments.candidates, CandidateSet),
            rankings_per_prompt=arguments.overlap,
            name=arguments.candidates.name,
            panel=panel_identity(panel, arguments.seed),
        )
        if not arguments.publish_only:
            status = rank_round(labels, status.round_id, panel, seed=arguments.seed)
    print(
        f"round {status.round_id}: {status.rankings_done} of {status.rankings_wanted} rankings by "
        f"{status.labelers} simulated labelers"
    )
    return 0


def _simulate_at_page(arguments: Namespace, panel: "PanelConfig") -> int:
    from labeling_ui.simulated_clients import DriveLimits, drive

    limits = DriveLimits(
        rankings=arguments.rankings, seconds=arguments.seconds, think_s=arguments.think
    )
    report = drive(arguments.url, panel, limits, seed=arguments.seed)
    p50, p95, p99 = report.percentiles_ms()
    print(
        f"{len(report.saved)} rankings in {report.seconds:.1f} s, {report.retries} retries; a "
        f"submission took {p50:.0f} ms (median), {p95:.0f} (95 %), {p99:.0f} (99 %)"
    )
    return 0


def export_labels(arguments: Namespace) -> int:
    """Writes a round's tables, and the groups that reward-model training reads."""
    from labeling_ui.labelers import WITHOUT_TEXTS
    from labeling_ui.parquet_export import ExportFilter
    from labeling_ui.training_tables import write_training_tables

    chosen = ExportFilter(
        without=tuple(sorted(arguments.without)),
        heldout_share=arguments.heldout_share,
        seed=arguments.seed,
    )
    with open_labels(arguments) as labels:
        manifest = write_training_tables(labels, arguments.round, arguments.out, chosen)
        texts = not labels.progress(arguments.round).panel.endswith(WITHOUT_TEXTS)
    for name, told in manifest["files"].items():
        print(f"{told['rows']:>7} {name}")
    print(f"in {arguments.out}")
    if not texts:
        print("no preference_groups: the round was imported without the texts of its responses")
    return 0
