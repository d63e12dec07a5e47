"""Claims and submissions in a round of 10,000 tasks against one of a million, in this process."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from sqlalchemy import Connection, literal, select, true, update

from alignment.records import CandidateSet, Message, Prompt, Response
from benchmarks.labeling.latency import Spread, spread
from benchmarks.labeling.plans import recorded, whole_reads
from labeling_ui.schema import response, round_count, task
from labeling_ui.store import LabelStore

OVERLAP = 3
WARM_UP = 100
LARGE_TABLES = ("task", "response", "assignment", "annotation")

Times = tuple[list[float], list[float]]
"""Seconds of claims and of submissions."""


def sized_store(place: Path | str, tasks: int) -> tuple[LabelStore, str]:
    """A label database with one round of so many tasks of four responses, and the round's id."""
    store = LabelStore.open(place)
    pattern = CandidateSet(
        prompt=Prompt(id="p", messages=(Message(role="user", content="What is two plus two?"),)),
        responses=tuple(Response(id=f"r{k}", text=f"It is {k}.") for k in range(4)),
    )
    round_id = store.publish_round([pattern], rankings_per_prompt=OVERLAP).round_id
    with store.write() as connection:
        _multiply(connection, tasks)
        connection.execute(
            update(round_count)
            .where(round_count.c.round_id == round_id)
            .values(tasks=tasks, wanted=tasks * OVERLAP)
        )
    _settle(store)
    return store, round_id


def _multiply(connection: Connection, tasks: int) -> None:
    # In the database: a million candidate sets as objects would take minutes and gigabytes.
    first = connection.scalar(select(task.c.id))
    numbers = select(literal(1).label("n")).cte(recursive=True)
    numbers = numbers.union_all(select(numbers.c.n + 1).where(numbers.c.n < tasks - 1))
    new_id = literal(f"{first}-") + (numbers.c.n + 10_000_000).cast(task.c.id.type)
    given = {"id": new_id, "position": numbers.c.n, "prompt_id": new_id}
    rows = select(*[given.get(c.name, c) for c in task.c]).select_from(task.join(numbers, true()))
    connection.execute(task.insert().from_select([c.name for c in task.c], rows))
    given = {"task_id": new_id}
    texts = select(*[given.get(c.name, c) for c in response.c]).where(response.c.task_id == first)
    texts = texts.select_from(response.join(numbers, true()))
    connection.execute(response.insert().from_select([c.name for c in response.c], texts))


def _settle(store: LabelStore) -> None:
    """What a database does by itself a while after so much was written."""
    with store._engine.connect() as connection:
        direct = connection.execution_options(isolation_level="AUTOCOMMIT")
        if connection.dialect.name == "postgresql":
            direct.exec_driver_sql("ANALYZE")
            direct.exec_driver_sql("CHECKPOINT")
            return
        connection.rollback()
        cursor: Any = connection.connection.cursor()
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def work(store: LabelStore, round_id: str, name: str, cards: int) -> Times:
    """Claims and submits so many cards as `name`."""
    claims, submissions = [], []
    for _ in range(cards):
        begun = perf_counter()
        card = store.claim(round_id, name)
        claimed = perf_counter()
        if card is None:
            raise RuntimeError("the round has ended before the measurement")
        store.submit(card.assignment_id, name, submission_id=card.assignment_id, tiers=[0, 1, 1, 2])
        submissions.append(perf_counter() - claimed)
        claims.append(claimed - begun)
    return claims, submissions


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """Two kinds of the same work in several rounds of turns, by call; `b` should not be slower."""

    call: str
    a: tuple[Spread, ...]
    b: tuple[Spread, ...]

    @property
    def median_ratio(self) -> float:
        """Of b over a: the median over rounds of the ratio of the rounds' medians."""
        return median(b.p50 / a.p50 for a, b in zip(self.a, self.b, strict=True))

    @property
    def p95_ratio(self) -> float:
        """The same of the 95th percentiles."""
        return median(b.p95 / a.p95 for a, b in zip(self.a, self.b, strict=True))


def in_turns(
    a: Callable[[int], Times], b: Callable[[int], Times], *, calls: int, rounds: int
) -> tuple[Contrast, Contrast]:
    """Claims and submissions of two kinds of work, `calls` of each a round, after a warm-up."""
    a(WARM_UP)
    b(WARM_UP)
    pairs = [(a(calls), b(calls)) for _ in range(rounds)]
    claims, submissions = (
        Contrast(
            call=name,
            a=tuple(spread(first[which]) for first, _ in pairs),
            b=tuple(spread(second[which]) for _, second in pairs),
        )
        for which, name in enumerate(("claim", "submit"))
    )
    return claims, submissions


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeReport:
    """`by_size`: a few tasks against many; `by_history`: a new labeler against one with much done.

    `whole_reads` are the steps of plans in the large round that no index bounds.
    """

    by_size: tuple[Contrast, Contrast]
    by_history: tuple[Contrast, Contrast]
    statements: int
    whole_reads: tuple[str, ...]
    setup_seconds: float


def by_size(
    few: Path | str, many: Path | str, *, tasks: tuple[int, int], calls: int, rounds: int, done: int
) -> SizeReport:
    """Measures at two empty databases, which it fills."""
    begun = perf_counter()
    small, small_id = sized_store(few, tasks[0])
    large, large_id = sized_store(many, tasks[1])
    with small, large:
        setup_seconds = perf_counter() - begun
        sizes = in_turns(
            partial(work, small, small_id, "Ada"),
            partial(work, large, large_id, "Ada"),
            calls=calls,
            rounds=rounds,
        )
        _settle(large)
        with recorded(large) as statements:
            work(large, large_id, "Ada", 5)
        found = whole_reads(large, statements, forced=False)
        work(large, large_id, "Bob", done)
        _settle(large)
        history = in_turns(
            partial(work, large, large_id, "Cyd"),
            partial(work, large, large_id, "Bob"),
            calls=calls,
            rounds=rounds,
        )
    return SizeReport(
        by_size=sizes,
        by_history=history,
        statements=len(statements),
        whole_reads=tuple(f for f in found if _of_a_large_table(f)),
        setup_seconds=setup_seconds,
    )


def _of_a_large_table(step: str) -> bool:
    table = step.split(":")[0].split(" of ")[-1].removeprefix("SCAN ").split()[0]
    return table in LARGE_TABLES
