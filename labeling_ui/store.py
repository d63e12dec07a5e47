"""The label service: publish a round, claim, submit, skip, freeze. The truth about all labels.

Pages, simulated panels and flows all go through `LabelStore`; none touches the database. It
may be opened by several processes and used by several threads at once.
"""

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import Connection, Engine, func, select, update
from sqlalchemy.exc import DatabaseError

from alignment.errors import LabelError
from alignment.records import CandidateSet, Ranking
from labeling_ui import assignment as leases
from labeling_ui import rounds, submission
from labeling_ui.candidates import check_candidates, round_digest
from labeling_ui.cards import Card, LabelerProgress, Receipt, RoundStatus
from labeling_ui.export import rankings_digest, read_rankings
from labeling_ui.labelers import find_labeler
from labeling_ui.schema import (
    READ_ONLY,
    assignment,
    explain_database_error,
    open_database,
    round_,
    setting,
    task,
)

LEASE_S = 1200
"""A claimed card is held for its labeler this long; work on it counts as a sign of life."""

_SUBMISSION_ID = re.compile(r"[A-Za-z0-9_.:-]{8,80}")


class LabelStore:
    """A label database that is open. Close it, or use it as a context manager.

    `clock` gives the time in seconds since 1970; tests exchange it to let leases run out.
    """

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._clock = clock

    @classmethod
    def open(cls, path: Path, *, clock: Callable[[], float] = time.time) -> Self:
        """Opens the database at `path`, creating it where absent.

        Raises:
            StoreError: not a label database, an unknown schema version, or not writable.
        """
        return cls(open_database(path), clock=clock)

    def close(self) -> None:
        """Closes all connections of this process."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def publish_round(
        self,
        candidates: Sequence[CandidateSet],
        *,
        rankings_per_prompt: int,
        name: str = "",
        panel: str = "",
    ) -> RoundStatus:
        """Opens candidates for ranking; the same candidates again give the round there is.

        `panel` names a simulated panel and its settings; only simulated labelers may rank such
        a round, and only people one without. A prompt whose responses are all identical is left
        out: there is nothing to rank.

        Raises:
            LabelError: candidates that nobody could rank; see `check_candidates`.
        """
        if rankings_per_prompt < 1:
            raise LabelError(f"rankings_per_prompt is {rankings_per_prompt}; it must be 1 or more")
        check_candidates(candidates)
        round_id = round_digest(candidates, rankings_per_prompt=rankings_per_prompt, panel=panel)
        with self._write() as connection:
            if connection.scalar(select(round_.c.id).where(round_.c.id == round_id)) is None:
                rounds.insert_round(
                    connection,
                    round_id,
                    candidates,
                    rankings_per_prompt=rankings_per_prompt,
                    name=name,
                    panel=panel,
                    now_ms=self._now_ms(),
                )
            return rounds.round_status(connection, rounds.find_round(connection, round_id))

    def claim(self, round_id: str, labeler: str, *, lease_s: float = LEASE_S) -> Card | None:
        """The next card of this labeler, or None when there is nothing left for them.

        A card they hold already comes back unchanged, with a fresh lease. No prompt comes twice
        to one labeler, and no prompt is given to more labelers than it wants rankings.

        Raises:
            LabelError: unknown round, or a name that this round does not accept.
        """
        with self._write() as connection:
            return leases.claim(
                connection,
                round_id,
                labeler,
                now_ms=self._now_ms(),
                lease_ms=round(lease_s * 1000),
            )

    def submit(
        self,
        assignment_id: str,
        labeler: str,
        *,
        submission_id: str,
        tiers: Sequence[int],
        active_seconds: float = 0.0,
    ) -> Receipt:
        """Stores a ranking: `tiers[i]` is the tier of the card's response i, 0 is best.

        When this returns the ranking is on disk. Sending it again with the same `submission_id`
        gives the same receipt. After an expired lease it still counts while the prompt wants
        rankings, and is kept as surplus otherwise.

        Raises:
            LabelError: a ranking that does not fit the card, a card of someone else, one ranked
                or skipped before, a frozen round, or the id used for another ranking.
        """
        if not _SUBMISSION_ID.fullmatch(submission_id):
            raise LabelError(
                f"submission id {submission_id[:90]!r} is not accepted: 8 to 80 letters, digits "
                "or any of _ . : -"
            )
        if not (math.isfinite(active_seconds) and active_seconds >= 0):
            raise LabelError(f"active_seconds is {active_seconds}; it must be 0 or more")
        with self._write() as connection:
            return submission.submit(
                connection,
                assignment_id,
                labeler,
                submission_id=submission_id,
                tiers=_checked_tiers(tiers),
                active_seconds=active_seconds,
                now_ms=self._now_ms(),
            )

    def skip(self, assignment_id: str, labeler: str, *, reason: str) -> None:
        """Passes a card on, for one of `SKIP_REASONS`; its labeler does not see it again.

        A prompt that as many people skipped as should rank it leaves the round.

        Raises:
            LabelError: unknown reason, a card of someone else, one ranked before, a frozen round.
        """
        with self._write() as connection:
            submission.skip(connection, assignment_id, labeler, reason=reason)

    def progress(self, round_id: str) -> RoundStatus:
        """How far a round is. Raises LabelError for an unknown round."""
        with self._read() as connection:
            return rounds.round_status(connection, rounds.find_round(connection, round_id))

    def rounds(self) -> list[RoundStatus]:
        """All rounds, newest first."""
        newest_first = select(round_).order_by(round_.c.created_ms.desc(), round_.c.id)
        with self._read() as connection:
            rows = connection.execute(newest_first).all()
            return [rounds.round_status(connection, row) for row in rows]

    def labeler_progress(self, round_id: str, name: str) -> LabelerProgress:
        """What a labeler has ranked in a round and what is open to them, their card included."""
        with self._read() as connection:
            frozen = rounds.find_round(connection, round_id).frozen_digest is not None
            labeler_id = find_labeler(connection, name)
            states = select(assignment.c.state, func.count()).join(task)
            mine = states.where(
                task.c.round_id == round_id, assignment.c.labeler_id == labeler_id
            ).group_by(assignment.c.state)
            count: dict[str, int] = dict(connection.execute(mine).tuples().all())
            available = leases.available_to(round_id, labeler_id or -1)
            open_tasks = connection.scalar(select(func.count()).select_from(task).where(available))
        return LabelerProgress(
            done=count.get("done", 0) + count.get("surplus", 0),
            left=0 if frozen else count.get("leased", 0) + (open_tasks or 0),
        )

    def freeze(self, round_id: str, *, allow_incomplete: bool = False) -> str:
        """Closes a round for good and returns the digest of its rankings; again: the same.

        Raises:
            LabelError: unknown round, rankings are missing and `allow_incomplete` is not set, or
                there are none at all.
        """
        with self._write() as connection:
            row = rounds.find_round(connection, round_id)
            if row.frozen_digest is not None:
                return str(row.frozen_digest)
            status = rounds.round_status(connection, row)
            if not status.rankings_done:
                raise LabelError(
                    f"round {round_id} has no rankings yet; there is nothing to freeze"
                )
            if not status.complete and not allow_incomplete:
                raise LabelError(
                    f"round {round_id} has {status.rankings_done} of {status.rankings_wanted} "
                    "rankings; wait for the rest, or freeze it with allow_incomplete"
                )
            digest = rankings_digest(round_id, read_rankings(connection, round_id))
            connection.execute(
                update(round_)
                .where(round_.c.id == round_id)
                .values(frozen_digest=digest, frozen_ms=self._now_ms())
            )
            return digest

    def rankings(self, round_id: str) -> list[Ranking]:
        """The counted rankings, by prompt in published order, then by labeler's pseudonym."""
        with self._read() as connection:
            rounds.find_round(connection, round_id)
            return read_rankings(connection, round_id)

    def session_secret(self) -> bytes:
        """Key that signs sign-in cookies; kept in the database, so a restart keeps people in."""
        with self._read() as connection:
            query = select(setting.c.value).where(setting.c.key == "session_secret")
            return bytes.fromhex(connection.execute(query).scalar_one())

    def _now_ms(self) -> int:
        return round(self._clock() * 1000)

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except DatabaseError as error:
            raise explain_database_error(self._engine, error) from error

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                reading = connection.execution_options(**{READ_ONLY: True})
                with reading.begin():
                    yield reading
        except DatabaseError as error:
            raise explain_database_error(self._engine, error) from error


def _checked_tiers(tiers: Sequence[int]) -> tuple[int, ...]:
    given = list(tiers)
    whole = all(isinstance(tier, int) and not isinstance(tier, bool) for tier in given)
    if not whole or set(given) != set(range(len(set(given)))) or not given:
        raise LabelError(
            f"tiers {given!r} are not accepted: whole numbers from 0 (best) without gaps, equal "
            "numbers for ties, e.g. [1, 0, 1]"
        )
    return tuple(given)
