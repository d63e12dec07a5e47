"""What comes back from a labeler: a ranking, an edit of one, a skip; inside one transaction.

A ranking is identified by the id its client drew, so sending it twice stores it once. One that
comes after its lease ran out counts while the task still wants rankings; after that, or after
the freeze, it is kept as `surplus`. Nothing that was acknowledged is ever changed or deleted: an
edit is a new revision.
"""

from typing import Any

from sqlalchemy import Connection, Row, delete, func, select, update

from alignment.errors import LabelError
from labeling_ui.assignment import expire_leases, lock_participation
from labeling_ui.cards import SKIP_REASONS, Receipt
from labeling_ui.judgement import Effort, Judgement, RoundSettings, check_judgement
from labeling_ui.rounds import find_round, is_complete, move_counts
from labeling_ui.schema import (
    acceptance,
    annotation,
    assignment,
    draft,
    labeler,
    participation,
    task,
)

_FINISHED = ("done", "surplus")


def submit(
    connection: Connection,
    assignment_id: str,
    name: str,
    *,
    submission_id: str,
    judgement: Judgement,
    effort: Effort,
    revise: bool,
    now_ms: int,
) -> Receipt:
    """Stores a ranking once, however often it is sent. See `LabelStore.submit`."""
    row, round_row = _locked_assignment(connection, assignment_id, name)
    counted = _stored(connection, row, submission_id, judgement)
    if counted is not None:
        return _receipt(connection, row, submission_id, counted=counted)
    settings = RoundSettings.from_json(round_row.settings)
    check_judgement(judgement, len(row.display_order), settings)
    if row.state in _FINISHED:
        _check_revisable(round_row, revise)
        counted = row.state == "done"
    else:
        _check_not_skipped(row)
        counted = _count_as_done(connection, row, round_row, now_ms)
    revisions = select(func.count()).where(annotation.c.assignment_id == assignment_id)
    connection.execute(
        annotation.insert().values(
            id=submission_id,
            assignment_id=assignment_id,
            revision=(connection.scalar(revisions) or 0) + 1,
            **judgement.content(),
            active_seconds=effort.active_seconds,
            wall_seconds=effort.wall_seconds,
            moves=effort.moves,
            guideline_version=_accepted_version(connection, row.labeler_id),
            created_ms=now_ms,
        )
    )
    connection.execute(delete(draft).where(draft.c.assignment_id == assignment_id))
    finished = {} if row.state in _FINISHED else {"finished_ms": now_ms}
    connection.execute(
        update(assignment)
        .where(assignment.c.id == assignment_id)
        .values(current_annotation=submission_id, **finished)
    )
    return _receipt(connection, row, submission_id, counted=counted)


def _receipt(
    connection: Connection, row: Row[Any], submission_id: str, *, counted: bool
) -> Receipt:
    return Receipt(
        submission_id=submission_id,
        assignment_id=row.id,
        counted=counted,
        round_complete=is_complete(connection, row.round_id),
    )


def _locked_assignment(
    connection: Connection, assignment_id: str, name: str
) -> tuple[Row[Any], Row[Any]]:
    """The assignment with its task and labeler, and its round; locked, in the one order."""
    query = (
        select(
            assignment,
            task.c.state.label("task_state"),
            task.c.kind,
            labeler.c.name.label("labeler_name"),
        )
        .select_from(assignment.join(task).join(labeler))
        .where(assignment.c.id == assignment_id)
    )
    row = connection.execute(query).one_or_none()
    if row is None or row.labeler_name != name:
        raise LabelError("this card is not yours or does not exist; reload the page for a new one")
    round_row = find_round(connection, row.round_id, lock="shared")
    lock_participation(connection, row.round_id, row.labeler_id)
    connection.execute(select(task.c.id).where(task.c.id == row.task_id).with_for_update())
    return connection.execute(query).one(), round_row


def _stored(
    connection: Connection, row: Row[Any], submission_id: str, judgement: Judgement
) -> bool | None:
    """Whether this very ranking, sent before, counted; None if it is new."""
    stored = connection.execute(
        select(annotation).where(annotation.c.id == submission_id)
    ).one_or_none()
    if stored is None:
        return None
    if (stored.assignment_id, Judgement.from_row(stored)) != (row.id, judgement):
        raise LabelError(
            f"submission {submission_id!r} was already used for another ranking "
            f"(tiers {stored.tiers}); send this one with a new submission id"
        )
    counted: bool = row.state != "surplus"
    return counted


def _check_revisable(round_row: Row[Any], revise: bool) -> None:
    if not revise:
        raise LabelError("you have already ranked this card; reload the page for the next one")
    if round_row.frozen_digest is not None:
        raise LabelError(
            f"round {round_row.id!r} is closed: its rankings are frozen, so what you submitted "
            "stays as it is"
        )


def _check_not_skipped(row: Row[Any]) -> None:
    if row.state == "skipped":
        raise LabelError("you have skipped this card; reload the page for the next one")


def _accepted_version(connection: Connection, labeler_id: int) -> int | None:
    return connection.scalar(
        select(func.max(acceptance.c.version)).where(acceptance.c.labeler_id == labeler_id)
    )


def _count_as_done(connection: Connection, row: Row[Any], round_row: Row[Any], now_ms: int) -> bool:
    """Moves the counters; False when the round is frozen, or the task has no room left."""
    held = row.state == "leased"
    if round_row.frozen_digest is not None:
        counted = False
        if held:
            connection.execute(
                update(task).where(task.c.id == row.task_id).values(leased=task.c.leased - 1)
            )
    elif held:
        moved = connection.execute(
            update(task)
            .where(task.c.id == row.task_id, task.c.leased > 0)
            .values(done=task.c.done + 1, leased=task.c.leased - 1)
        )
        counted = moved.rowcount == 1
    else:
        expire_leases(connection, row.round_id, now_ms)
        moved = connection.execute(
            update(task)
            .where(task.c.id == row.task_id, task.c.done + task.c.leased < task.c.wanted)
            .values(done=task.c.done + 1)
        )
        counted = moved.rowcount == 1
    connection.execute(
        update(assignment)
        .where(assignment.c.id == row.id)
        .values(state="done" if counted else "surplus")
    )
    _count_for_labeler(connection, row, **{"done" if counted else "surplus": 1})
    connection.execute(
        update(task)
        .where(task.c.id == row.task_id, task.c.done == task.c.wanted, task.c.state == "open")
        .values(state="complete")
    )
    if counted and row.kind == "main":
        # A ranking of a prompt that has left the round is wanted and done at once.
        extra = {"wanted": 1} if row.task_state == "left_out" else {}
        move_counts(connection, row.round_id, {"done": 1} | extra)
    return counted


def _count_for_labeler(connection: Connection, row: Row[Any], **changes: int) -> None:
    connection.execute(
        update(participation)
        .where(
            participation.c.round_id == row.round_id,
            participation.c.labeler_id == row.labeler_id,
        )
        .values({name: participation.c[name] + change for name, change in changes.items()})
    )


def skip(
    connection: Connection, assignment_id: str, name: str, *, reason: str, now_ms: int
) -> None:
    """Passes the task on; once as many people skipped as should rank, it leaves the round."""
    if reason not in SKIP_REASONS:
        raise LabelError(f"skip reason {reason!r} is unknown; accepted: {', '.join(SKIP_REASONS)}")
    row, round_row = _locked_assignment(connection, assignment_id, name)
    if row.state == "skipped":
        return
    if round_row.frozen_digest is not None:
        raise LabelError(
            f"round {row.round_id!r} is closed: its rankings are frozen, so nothing can be "
            "skipped any more"
        )
    if row.state in _FINISHED:
        raise LabelError("you have already ranked this card; reload the page for the next one")
    connection.execute(
        update(assignment)
        .where(assignment.c.id == assignment_id)
        .values(state="skipped", skip_reason=reason, finished_ms=now_ms)
    )
    connection.execute(
        update(task)
        .where(task.c.id == row.task_id)
        .values(
            leased=task.c.leased - (1 if row.state == "leased" else 0),
            skips=task.c.skips + 1,
            released=True,
        )
    )
    connection.execute(delete(draft).where(draft.c.assignment_id == assignment_id))
    _count_for_labeler(connection, row, skipped=1)
    left = connection.execute(
        update(task)
        .where(
            task.c.id == row.task_id,
            task.c.kind == "main",
            task.c.state == "open",
            task.c.skips >= task.c.wanted,
        )
        .values(state="left_out")
        .returning(task.c.wanted, task.c.done)
    ).one_or_none()
    if left is not None:
        changes = {"left_out": 1, "wanted": left.done - left.wanted}
        move_counts(connection, row.round_id, changes)


def unskip(connection: Connection, assignment_id: str, name: str) -> None:
    """Takes a skip back: the card is open again as after an expired lease."""
    row, round_row = _locked_assignment(connection, assignment_id, name)
    if row.state != "skipped":
        return
    if round_row.frozen_digest is not None:
        raise LabelError(f"round {row.round_id!r} is closed; the skip stays as it is")
    connection.execute(
        update(assignment)
        .where(assignment.c.id == assignment_id)
        .values(state="expired", skip_reason=None, finished_ms=None)
    )
    connection.execute(update(task).where(task.c.id == row.task_id).values(skips=task.c.skips - 1))
    _count_for_labeler(connection, row, skipped=-1)
    back = connection.execute(
        update(task)
        .where(
            task.c.id == row.task_id,
            task.c.state == "left_out",
            task.c.skips < task.c.wanted,
            task.c.done < task.c.wanted,
        )
        .values(state="open")
        .returning(task.c.wanted, task.c.done)
    ).one_or_none()
    if back is not None:
        changes = {"left_out": -1, "wanted": back.wanted - back.done}
        move_counts(connection, row.round_id, changes)
