"""Who ranks what next: leases on tasks, inside one write transaction of the store.

An assignment joins a task and a labeler once and for all: `leased` → `done`, `skipped`, or
`expired` when the lease ran out and someone else asked for work. An expired one may be leased
again to the same labeler while the task still wants rankings. `task.done` and `task.leased`
count along, and the database refuses `done + leased > wanted`. Leases expire lazily, on the
next claim: no scheduler is needed.
"""

import random
import secrets
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, and_, exists, select, update

from alignment.records import Message
from labeling_ui.candidates import identical_groups
from labeling_ui.cards import RESPONSE_LABELS, Card, CardResponse
from labeling_ui.labelers import check_labeler_name, find_or_add_labeler
from labeling_ui.rounds import find_round
from labeling_ui.schema import assignment, response, task


def claim(
    connection: Connection, round_id: str, name: str, *, now_ms: int, lease_ms: int
) -> Card | None:
    """The labeler's card: the one they hold, else the first task that wants another ranking."""
    round_row = find_round(connection, round_id)
    check_labeler_name(name, panel=round_row.panel)
    if round_row.frozen_digest is not None:
        return None
    labeler_id = find_or_add_labeler(connection, name, now_ms)
    held = _held_assignment(connection, round_id, labeler_id)
    if held is not None:  # also past its time: nobody else has asked for it yet
        connection.execute(
            update(assignment)
            .where(assignment.c.id == held.id)
            .values(expires_ms=now_ms + lease_ms)
        )
        return _card(connection, held.id, held.task_id, held.display_order)
    expire_leases(connection, round_id, now_ms)
    task_id = _next_task(connection, round_id, labeler_id)
    if task_id is None:
        return None
    return _lease(connection, task_id, labeler_id, now_ms=now_ms, lease_ms=lease_ms)


def _held_assignment(connection: Connection, round_id: str, labeler_id: int) -> Row[Any] | None:
    return connection.execute(
        select(assignment)
        .join(task)
        .where(
            assignment.c.labeler_id == labeler_id,
            assignment.c.state == "leased",
            task.c.round_id == round_id,
        )
        .limit(1)
    ).one_or_none()


def expire_leases(connection: Connection, round_id: str, now_ms: int) -> None:
    """Gives the tasks of overdue leases back; the assignments stay, as `expired`."""
    stale = connection.execute(
        select(assignment.c.id, assignment.c.task_id)
        .join(task)
        .where(
            assignment.c.state == "leased",
            assignment.c.expires_ms <= now_ms,
            task.c.round_id == round_id,
        )
    ).all()
    for row in stale:
        connection.execute(
            update(assignment).where(assignment.c.id == row.id).values(state="expired")
        )
        connection.execute(
            update(task).where(task.c.id == row.task_id).values(leased=task.c.leased - 1)
        )


def _next_task(connection: Connection, round_id: str, labeler_id: int) -> str | None:
    return connection.scalar(
        select(task.c.id)
        .where(available_to(round_id, labeler_id))
        .order_by(task.c.position)
        .limit(1)
    )


def available_to(round_id: str, labeler_id: int) -> Any:
    """Condition on tasks: wants another ranking, and this labeler has not settled it."""
    settled = exists().where(
        assignment.c.task_id == task.c.id,
        assignment.c.labeler_id == labeler_id,
        assignment.c.state != "expired",
    )
    return and_(
        task.c.round_id == round_id,
        task.c.state == "open",
        task.c.done + task.c.leased < task.c.wanted,
        ~settled,
    )


def _lease(
    connection: Connection, task_id: str, labeler_id: int, *, now_ms: int, lease_ms: int
) -> Card:
    earlier = connection.execute(
        select(assignment).where(
            assignment.c.task_id == task_id, assignment.c.labeler_id == labeler_id
        )
    ).one_or_none()
    if earlier is not None:  # its lease ran out: the same card again, in the same order
        assignment_id, order = earlier.id, earlier.display_order
        connection.execute(
            update(assignment)
            .where(assignment.c.id == assignment_id)
            .values(state="leased", leased_ms=now_ms, expires_ms=now_ms + lease_ms)
        )
    else:
        assignment_id, order = secrets.token_urlsafe(18), _draw_order(connection, task_id)
        connection.execute(
            assignment.insert().values(
                id=assignment_id,
                task_id=task_id,
                labeler_id=labeler_id,
                state="leased",
                display_order=order,
                leased_ms=now_ms,
                expires_ms=now_ms + lease_ms,
            )
        )
    connection.execute(update(task).where(task.c.id == task_id).values(leased=task.c.leased + 1))
    return _card(connection, assignment_id, task_id, order)


def _responses(connection: Connection, task_id: str) -> Sequence[Row[Any]]:
    return connection.execute(
        select(response).where(response.c.task_id == task_id).order_by(response.c.position)
    ).all()


def _draw_order(connection: Connection, task_id: str) -> list[list[int]]:
    # Drawn, not derived: an order that a labeler could recompute would tell which is which.
    rows = _responses(connection, task_id)
    groups = identical_groups([(row.text, row.cut_off) for row in rows])
    random.SystemRandom().shuffle(groups)
    return groups


def _card(
    connection: Connection, assignment_id: str, task_id: str, order: Sequence[Sequence[int]]
) -> Card:
    prompt = connection.execute(
        select(task.c.messages, task.c.language).where(task.c.id == task_id)
    ).one()
    rows = _responses(connection, task_id)
    shown = [rows[positions[0]] for positions in order]
    return Card(
        assignment_id=assignment_id,
        task_id=task_id,
        messages=tuple(Message(role=role, content=content) for role, content in prompt.messages),
        language=prompt.language,
        responses=tuple(
            CardResponse(label=label, text=row.text, cut_off=row.cut_off)
            for label, row in zip(RESPONSE_LABELS, shown, strict=False)
        ),
    )
