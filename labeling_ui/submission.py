"""What comes back from a labeler: a ranking or a skip, inside one write transaction of the store.

A ranking is identified by the id its client drew, so sending it twice stores it once. One that
comes after its lease ran out counts while the task still wants rankings; after that it is kept
as `surplus`. Nothing that was acknowledged is ever changed or deleted.
"""

from typing import Any

from sqlalchemy import Connection, Row, select, update

from alignment.errors import LabelError
from labeling_ui.assignment import expire_leases
from labeling_ui.cards import SKIP_REASONS, Receipt
from labeling_ui.schema import annotation, assignment, labeler, round_, task


def submit(
    connection: Connection,
    assignment_id: str,
    name: str,
    *,
    submission_id: str,
    tiers: tuple[int, ...],
    active_seconds: float,
    now_ms: int,
) -> Receipt:
    """Stores a ranking once, however often it is sent."""
    stored = connection.execute(
        select(annotation).where(annotation.c.id == submission_id)
    ).one_or_none()
    row = _owned_assignment(connection, assignment_id, name)
    if stored is not None:
        if (stored.assignment_id, tuple(stored.tiers)) != (assignment_id, tiers):
            raise LabelError(
                f"submission {submission_id!r} was already used for another ranking "
                f"(tiers {stored.tiers}); send this one with a new submission id"
            )
        return Receipt(
            submission_id=submission_id,
            assignment_id=assignment_id,
            counted=row.state != "surplus",
        )
    _check_open(row, "ranked")
    if len(tiers) != len(row.display_order):
        raise LabelError(
            f"the ranking has {len(tiers)} tiers, but the card shows "
            f"{len(row.display_order)} responses; give one tier for each"
        )
    counted = _count_as_done(connection, row, now_ms)
    connection.execute(
        annotation.insert().values(
            id=submission_id,
            assignment_id=assignment_id,
            revision=1,
            tiers=list(tiers),
            active_seconds=active_seconds,
            created_ms=now_ms,
        )
    )
    return Receipt(submission_id=submission_id, assignment_id=assignment_id, counted=counted)


def skip(connection: Connection, assignment_id: str, name: str, *, reason: str) -> None:
    """Passes the task on; once as many people skipped as should rank, it leaves the round."""
    if reason not in SKIP_REASONS:
        raise LabelError(f"skip reason {reason!r} is unknown; accepted: {', '.join(SKIP_REASONS)}")
    row = _owned_assignment(connection, assignment_id, name)
    if row.state == "skipped":
        return
    _check_open(row, "skipped")
    leased = task.c.leased - (1 if row.state == "leased" else 0)
    connection.execute(
        update(assignment)
        .where(assignment.c.id == assignment_id)
        .values(state="skipped", skip_reason=reason)
    )
    connection.execute(
        update(task).where(task.c.id == row.task_id).values(leased=leased, skips=task.c.skips + 1)
    )
    connection.execute(
        update(task)
        .where(task.c.id == row.task_id, task.c.state == "open", task.c.skips >= task.c.wanted)
        .values(state="left_out")
    )


def _owned_assignment(connection: Connection, assignment_id: str, name: str) -> Row[Any]:
    row = connection.execute(
        select(
            assignment,
            task.c.round_id,
            task.c.state.label("task_state"),
            round_.c.frozen_digest,
            labeler.c.name.label("labeler_name"),
        )
        .select_from(assignment.join(task).join(round_).join(labeler))
        .where(assignment.c.id == assignment_id)
    ).one_or_none()
    if row is None or row.labeler_name != name:
        raise LabelError("this card is not yours or does not exist; reload the page for a new one")
    return row


def _check_open(row: Row[Any], verb: str) -> None:
    if row.frozen_digest is not None:
        raise LabelError(
            f"round {row.round_id!r} is closed: its rankings are frozen, so nothing can be "
            f"{verb} any more"
        )
    if row.state in ("done", "surplus"):
        raise LabelError("you have already ranked this card; reload the page for the next one")
    if row.state == "skipped":
        raise LabelError("you have skipped this card; reload the page for the next one")


def _count_as_done(connection: Connection, row: Row[Any], now_ms: int) -> bool:
    """Moves the counters; False when the lease is gone and the task has no room left."""
    if row.state == "leased":
        change = {"done": task.c.done + 1, "leased": task.c.leased - 1}
        room = task.c.leased > 0
    else:
        expire_leases(connection, row.round_id, now_ms)
        change = {"done": task.c.done + 1}
        room = task.c.done + task.c.leased < task.c.wanted
    moved = connection.execute(update(task).where(task.c.id == row.task_id, room).values(change))
    counted = moved.rowcount == 1
    connection.execute(
        update(assignment)
        .where(assignment.c.id == row.id)
        .values(state="done" if counted else "surplus")
    )
    connection.execute(
        update(task)
        .where(task.c.id == row.task_id, task.c.done == task.c.wanted)
        .values(state="complete")
    )
    return counted
