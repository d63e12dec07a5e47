"""What people do with finished work: `alignflow lineage`, `release` and `store gc`."""

import json
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from alignment.errors import StoreError

if TYPE_CHECKING:
    from flows.garbage import Found

_GC_DETAILS = """\
A run counts as long as its folder exists: delete runs/NAME, and what only that run needed may go.
Kept are the whole lineage of every such run, stages begun and not finished, and stages of runs
that the store has no note of. Labels are never touched. Refused while a run is at work.

examples:
  alignflow store gc --dry-run
  alignflow store gc --store /data/store
"""

MakeCommand = Callable[[str, str, str], ArgumentParser]


def add_store_commands(command: MakeCommand) -> None:
    """Adds the commands; `command(name, summary, details)` makes each parser."""
    parser = command(
        "lineage",
        "show what a run's results were made of, down to files and rankings",
        "examples:\n"
        "  alignflow lineage quickstart\n"
        "  alignflow lineage quickstart --rankings       each ranking behind the policy\n"
        "  alignflow lineage quickstart --json\n"
        "  alignflow lineage quickstart --picture lineage.svg",
    )
    _add_run(parser)
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.add_argument("--rankings", action="store_true", help="list each ranking too")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write an SVG picture instead")
    parser.set_defaults(handler=show_lineage)
    _add_release(command)
    _add_store(command)


def _add_release(command: MakeCommand) -> None:
    parser = command(
        "release",
        "write a finished run's policy as a folder that transformers and vLLM load",
        "The folder holds merged weights, tokenizer, model card and lineage, and no names of "
        "labelers.\n\nexample:\n  alignflow release quickstart --out release/",
    )
    _add_run(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder")
    parser.add_argument(
        "--despite-checks", action="store_true", help="also if a check of the run failed"
    )
    parser.set_defaults(handler=release_policy)


def _add_store(command: MakeCommand) -> None:
    store = command("store", "look after the store", "example:\n  alignflow store gc --dry-run")
    actions = store.add_subparsers(title="commands", metavar="COMMAND", required=True)
    summary = "remove finished stages that no run needs any more"
    parser = actions.add_parser(
        "gc",
        help=summary,
        description=f"{summary.capitalize()}.",
        epilog=_GC_DETAILS,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--store", type=Path, default=Path("store"), help="the store (store)")
    parser.add_argument(
        "--runs",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="folder of runs besides those the store has noted; may be repeated",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    parser.add_argument(
        "--unfinished",
        action="store_true",
        help="interrupted stages that no run is on go too, with their checkpoints",
    )
    parser.add_argument(
        "--forget",
        action="append",
        default=[],
        metavar="RUN",
        help="a run whose folder is out of sight and shall not count; may be repeated",
    )
    parser.set_defaults(handler=clean_store)


def _add_run(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="name below --runs, or a run's folder")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs (runs)")


def show_lineage(arguments: Namespace) -> int:
    """Print or draw what a run's results were made of."""
    from flows.commands import named_run, until_nobody_reads
    from flows.lineage import run_lineage
    from flows.run_record import read_run
    from flows.shared_store import store_of_run

    folder = named_run(arguments.run, arguments.runs)
    graph = run_lineage(store_of_run(read_run(folder)), folder)
    if not graph.ends:
        raise StoreError(f"run {folder.name} has no finished stage in the store yet")
    with until_nobody_reads():
        if arguments.picture is not None:
            from flows.lineage_picture import render_picture

            _write_text(arguments.picture, render_picture(graph))
            print(f"{len(graph.artifacts)} artifacts drawn in {arguments.picture}")
        elif arguments.json:
            shown = graph.as_json(rankings=arguments.rankings)
            print(json.dumps(shown, indent=2, ensure_ascii=False))
        else:
            from flows.lineage_text import render_text

            print(render_text(graph, rankings=arguments.rankings))
    return 0


def release_policy(arguments: Namespace) -> int:
    """Write the release folder and say what is in it."""
    from flows.commands import named_run
    from flows.release import release

    folder = named_run(arguments.run, arguments.runs)
    done = release(folder, arguments.out, despite_checks=arguments.despite_checks)
    print(
        f"{done.folder}: policy {done.policy.key[:12]} of run {folder.name}, "
        f"{done.bytes} bytes, with README.md, lineage.json and lineage.svg"
    )
    return 0


def clean_store(arguments: Namespace) -> int:
    """Remove what no run needs, or say what would be removed."""
    from flows.garbage import cleaning, look_through, remove
    from flows.store import ArtifactStore

    if not arguments.store.is_dir():
        raise StoreError(f"there is no store {arguments.store}; name one with --store")
    store = ArtifactStore(arguments.store)
    with nullcontext() if arguments.dry_run else cleaning(store):
        found = look_through(
            store, arguments.runs, forget=arguments.forget, unfinished=arguments.unfinished
        )
        gone = [item for item in found if item.removable]
        for item in gone:
            print(f"{'would remove' if arguments.dry_run else 'removing'} {_described(item)}")
        if not arguments.dry_run:
            gone = remove(store, found)
    word = "would be removed" if arguments.dry_run else "removed"
    print(f"{len(gone)} stages {word}, {_size(gone)}; labels are not touched")
    kept = [item for item in found if item not in gone]
    counts = Counter(_KEPT_BECAUSE.get(item.why, "held by a process") for item in kept)
    print(f"{len(kept)} stages kept, {_size(kept)}")
    for reason, count in counts.most_common():
        print(f"  {count} {reason}")
    return 0


_KEPT_BECAUSE = {
    "needed": "in the lineage of a run that exists",
    "unfinished": "begun and not finished",
    "unknown run": "made by a run that the store has no note of",
}


def _described(item: "Found") -> str:
    made = f", made {item.created} by run {item.run}" if item.created else ", not finished"
    made = ", left over from an earlier removal" if item.why == "left over" else made
    return f"{item.stage} {item.key}, {_size([item])}{made}"


def _size(found: Sequence["Found"]) -> str:
    total = sum(item.bytes for item in found)
    return f"{total} bytes" if total < 2**20 else f"{total} bytes ({total / 2**30:.3g} GiB)"


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror}); name a file in a folder that exists"
        ) from error
