"""The label service: publish a round, claim, submit, edit, skip, freeze. The truth about labels.

Pages, simulated panels and flows all go through `LabelStore`; none touches the database. It
may be opened by several processes and used by several threads at once.
"""

import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Connection, Engine, func, select, update
from sqlalchemy.exc import DatabaseError

from alignment.errors import LabelError
from alignment.records import CandidateSet, Ranking
from labeling_ui import assignment as leases
from labeling_ui import history, rounds, submission
from labeling_ui.candidates import check_candidates, round_digest
from labeling_ui.cards import (
    Card,
    FinishedCard,
    LabelerProgress,
    Receipt,
    ReopenedCard,
    RoundStatus,
)
from labeling_ui.checks import CheckItem, check_items
from labeling_ui.database import (
    READ_ONLY,
    Turns,
    exclusive,
    explain_database_error,
    insert_if_absent,
    open_database,
)
from labeling_ui.export import rankings_digest, read_rankings
from labeling_ui.judgement import Effort, Judgement, RoundSettings, check_tiers
from labeling_ui.labelers import find_labeler
from labeling_ui.schema import assignment, participation, round_, setting
from labeling_ui.task_choice import count_open

_SUBMISSION_ID = re.compile(r"[A-Za-z0-9_.:-]{8,80}")


class LabelStore:
    """A label database that is open. Close it, or use it as a context manager.

    `clock` gives the time in seconds since 1970; tests exchange it to let leases run out.
    """

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._clock = clock
        self._writers = Turns() if engine.dialect.name == "sqlite" else nullcontext()

    @classmethod
    def open(cls, place: Path | str, *, clock: Callable[[], float] = time.time) -> Self:
        """Opens the database at a path or `postgresql://` URL, creating it where absent.

        Raises:
            StoreError: not a label database, an unknown schema version, or not writable.
        """
        return cls(open_database(place), clock=clock)

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
        settings: RoundSettings | None = None,
        checks: Sequence[CheckItem] = (),
    ) -> RoundStatus:
        """Opens candidates for ranking; the same candidates again give the round there is.

        `panel` names a simulated panel and its settings; only simulated labelers may rank such
        a round, and only people one without. A prompt whose responses are all identical is left
        out: there is nothing to rank. `checks` are what gold and attention shares draw from.

        Raises:
            LabelError: candidates or settings that nobody could work with.
        """
        if rankings_per_prompt < 1:
            raise LabelError(f"rankings_per_prompt is {rankings_per_prompt}; it must be 1 or more")
        check_candidates(candidates)
        if checks:
            check_candidates([check.candidates for check in checks])
            check_items(checks)
        chosen = settings or RoundSettings()
        extra: list[Any] = [] if chosen == RoundSettings() else [chosen.to_json()]
        extra += [[check.kind, check.candidates.prompt.id, check.pairs] for check in checks]
        round_id = round_digest(
            candidates, rankings_per_prompt=rankings_per_prompt, panel=panel, extra=extra
        )
        with self.write() as connection:
            exclusive(connection)
            if connection.scalar(select(round_.c.id).where(round_.c.id == round_id)) is None:
                rounds.insert_round(
                    connection,
                    round_id,
                    candidates,
                    rankings_per_prompt=rankings_per_prompt,
                    name=name,
                    panel=panel,
                    now_ms=self.now_ms(),
                    settings=chosen,
                    checks=checks,
                )
            return rounds.round_status(connection, rounds.find_round(connection, round_id))

    def claim(
        self,
        round_id: str,
        labeler: str,
        *,
        lease_s: float | None = None,
        beside: str | None = None,
    ) -> Card | None:
        """The next card of this labeler, or None when there is nothing left for them.

        A card they hold already comes back unchanged, with a fresh lease. No prompt comes twice
        to one labeler, and no prompt is given to more labelers than it wants rankings. With
        `beside`, the assignment they work on, the one after it: at most two are ever held.

        Raises:
            LabelError: unknown round, or a name that this round does not accept.
        """
        with self.write() as connection:
            return leases.claim(
                connection,
                round_id,
                labeler,
                now_ms=self.now_ms(),
                lease_ms=None if lease_s is None else round(lease_s * 1000),
                beside=beside,
            )

    def keep_alive(self, assignment_ids: Sequence[str], labeler: str) -> int:
        """A sign of life: fresh leases on cards this labeler still holds. Gives how many."""
        with self.write() as connection:
            return history.keep_alive(connection, assignment_ids, labeler, self.now_ms())

    def submit(
        self,
        assignment_id: str,
        labeler: str,
        *,
        submission_id: str,
        tiers: Sequence[int] = (),
        active_seconds: float = 0.0,
        judgement: Judgement | None = None,
        effort: Effort | None = None,
        revise: bool = False,
    ) -> Receipt:
        """Stores a ranking: `tiers[i]` is the tier of the card's response i, 0 is best.

        When this returns the ranking is on disk. Sending it again with the same `submission_id`
        gives the same receipt. After an expired lease it still counts while the prompt wants
        rankings, and is kept as surplus otherwise, as it is after a freeze. `judgement` and
        `effort` say more than `tiers` and `active_seconds`. With `revise` it replaces what this
        labeler said before; the earlier revisions stay.

        Raises:
            LabelError: a ranking that does not fit the card, a card of someone else, one ranked
                or skipped before, a revision after the freeze, or the id of another ranking.
        """
        if not _SUBMISSION_ID.fullmatch(submission_id):
            raise LabelError(
                f"submission id {submission_id[:90]!r} is not accepted: 8 to 80 letters, digits "
                "or any of _ . : -"
            )
        effort = effort or Effort(active_seconds=active_seconds)
        judgement = judgement or Judgement(tiers=check_tiers(tiers))
        with self.write() as connection:
            return submission.submit(
                connection,
                assignment_id,
                labeler,
                submission_id=submission_id,
                judgement=judgement,
                effort=effort,
                revise=revise,
                now_ms=self.now_ms(),
            )

    def skip(self, assignment_id: str, labeler: str, *, reason: str) -> None:
        """Passes a card on, for one of `SKIP_REASONS`; its labeler does not see it again.

        A prompt that as many people skipped as should rank it leaves the round.

        Raises:
            LabelError: unknown reason, a card of someone else, one ranked before, a frozen round.
        """
        with self.write() as connection:
            submission.skip(connection, assignment_id, labeler, reason=reason, now_ms=self.now_ms())

    def finished(self, round_id: str, labeler: str, *, limit: int = 20) -> list[FinishedCard]:
        """What a labeler ranked or skipped in a round, newest first."""
        with self.read() as connection:
            return history.finished_cards(connection, round_id, labeler, limit)

    def reopen(self, assignment_id: str, labeler: str) -> ReopenedCard:
        """A finished card of this labeler again, to look at or to submit with `revise`.

        A skip is taken back by it. Nothing else changes until something is submitted.

        Raises:
            LabelError: a card of someone else, or one skipped in a round that is frozen by now.
        """
        with self.write() as connection:
            submission.unskip(connection, assignment_id, labeler)
            return history.reopened_card(connection, assignment_id, labeler)

    def settings(self, round_id: str) -> RoundSettings:
        """How a round is run. Raises LabelError for an unknown round."""
        with self.read() as connection:
            return RoundSettings.from_json(rounds.find_round(connection, round_id).settings)

    def progress(self, round_id: str) -> RoundStatus:
        """How far a round is. Raises LabelError for an unknown round."""
        with self.read() as connection:
            return rounds.round_status(connection, rounds.find_round(connection, round_id))

    def rounds(self) -> list[RoundStatus]:
        """All rounds, newest first."""
        newest_first = select(round_).order_by(round_.c.created_ms.desc(), round_.c.id)
        with self.read() as connection:
            rows = connection.execute(newest_first).all()
            return [rounds.round_status(connection, row) for row in rows]

    def labeler_progress(self, round_id: str, name: str) -> LabelerProgress:
        """What a labeler has ranked in a round and what is open to them, their cards included."""
        with self.read() as connection:
            row = rounds.find_round(connection, round_id)
            labeler_id = find_labeler(connection, name) or -1
            mine = connection.execute(
                select(participation).where(
                    participation.c.round_id == round_id,
                    participation.c.labeler_id == labeler_id,
                )
            ).one_or_none()
            held = connection.scalar(
                select(func.count()).where(
                    assignment.c.labeler_id == labeler_id,
                    assignment.c.round_id == round_id,
                    assignment.c.state == "leased",
                )
            )
            cursor = mine.cursor if mine is not None else 0
            waiting = count_open(connection, round_id, labeler_id, cursor)
        open_to_all = row.frozen_digest is None and row.state == "open"
        return LabelerProgress(
            done=mine.done + mine.surplus if mine is not None else 0,
            left=0 if row.frozen_digest else (held or 0) + (waiting if open_to_all else 0),
        )

    def freeze(self, round_id: str, *, allow_incomplete: bool = False) -> str:
        """Closes a round for good and returns the digest of its rankings; again: the same.

        Raises:
            LabelError: unknown round, rankings are missing and `allow_incomplete` is not set, or
                there are none at all.
        """
        with self.write() as connection:
            row = rounds.find_round(connection, round_id, lock="alone")
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
                .values(frozen_digest=digest, frozen_ms=self.now_ms())
            )
            return digest

    def rankings(self, round_id: str) -> list[Ranking]:
        """The counted rankings, by prompt in published order, then by labeler's pseudonym."""
        with self.read() as connection:
            rounds.find_round(connection, round_id)
            return read_rankings(connection, round_id)

    def session_secret(self) -> bytes:
        """Key that signs sign-in cookies; kept in the database, so a restart keeps people in."""
        with self.read() as connection:
            query = select(setting.c.value).where(setting.c.key == "session_secret")
            return bytes.fromhex(connection.execute(query).scalar_one())

    def access_token(self) -> str:
        """What signing in takes where other machines can connect; drawn once and kept."""
        drawn = {"key": "access_token", "value": secrets.token_urlsafe(18)}
        with self.write() as connection:
            insert_if_absent(connection, setting, drawn)
            query = select(setting.c.value).where(setting.c.key == "access_token")
            return str(connection.execute(query).scalar_one())

    def now_ms(self) -> int:
        """The time of this store's clock."""
        return round(self._clock() * 1000)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction that changes something; for the modules of this package."""
        try:
            with self._writers, self._engine.begin() as connection:
                yield connection
        except DatabaseError as error:
            raise explain_database_error(self._engine, error) from error

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One transaction that sees one state of the database and changes nothing."""
        try:
            with self._engine.connect() as connection:
                reading = connection.execution_options(**{READ_ONLY: True})
                with reading.begin():
                    yield reading
        except DatabaseError as error:
            raise explain_database_error(self._engine, error) from error
