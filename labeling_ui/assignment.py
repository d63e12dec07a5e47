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

from sqlalchemy import Connection, Row, or_, select, update

from alignment.records import Message
from labeling_ui.candidates import identical_groups
from labeling_ui.cards import RESPONSE_LABELS, Card, CardResponse
from labeling_ui.database import insert_if_absent
from labeling_ui.judgement import RoundSettings
from labeling_ui.labelers import check_labeler_name, find_or_add_labeler
from labeling_ui.rounds import find_round
from labeling_ui.schema import assignment, participation, response, task
from labeling_ui.task_choice import choose_task

MAX_LEASE_MS = 24 * 3600 * 1000
"""No lease is longer; one that ends later still was given by a clock that has been wrong."""


def claim(
    connection: Connection,
    round_id: str,
    name: str,
    *,
    now_ms: int,
    lease_ms: int | None,
    beside: str | None = None,
) -> Card | None:
    """The labeler's card: one they hold, else the next task for them. See `LabelStore.claim`."""
    # One claim at a time: two could each have a task in hand that the other waits for. What others
    # do in a round never waits for a second task, so no deadlock is left to try again after.
    round_row = find_round(connection, round_id, lock="turn")
    check_labeler_name(name, panel=round_row.panel)
    if round_row.frozen_digest is not None:
        return None
    settings = RoundSettings.from_json(round_row.settings)
    lease_ms = round(settings.lease_s * 1000) if lease_ms is None else lease_ms
    labeler_id = find_or_add_labeler(connection, name, now_ms)
    mine = lock_participation(connection, round_id, labeler_id)
    held = _held(connection, round_id, labeler_id)
    others = [row for row in held if row.id != beside]
    if others:  # also past its time: nobody else has asked for it yet
        row = others[0]
        extend(connection, [row.id], now_ms + lease_ms)
        return read_card(connection, row)
    if round_row.state != "open":
        return None
    expire_leases(connection, round_id, now_ms)
    chosen = choose_task(connection, round_id, labeler_id, name, mine, settings)
    if chosen is None:
        return None
    row = _lease(connection, chosen, round_id, labeler_id, now_ms=now_ms, lease_ms=lease_ms)
    return read_card(connection, row)


def lock_participation(connection: Connection, round_id: str, labeler_id: int) -> Row[Any]:
    """The labeler's row in this round, held until the transaction ends."""
    key = {"round_id": round_id, "labeler_id": labeler_id}
    query = (
        select(participation)
        .where(participation.c.round_id == round_id, participation.c.labeler_id == labeler_id)
        .with_for_update()
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        insert_if_absent(connection, participation, key)
        row = connection.execute(query).one()
    return row


def _held(connection: Connection, round_id: str, labeler_id: int) -> Sequence[Row[Any]]:
    return connection.execute(
        select(assignment)
        .where(
            assignment.c.labeler_id == labeler_id,
            assignment.c.round_id == round_id,
            assignment.c.state == "leased",
        )
        .order_by(assignment.c.leased_ms, assignment.c.id)
    ).all()


def extend(connection: Connection, assignment_ids: Sequence[str], expires_ms: int) -> None:
    """Moves the end of leases that are still held."""
    connection.execute(
        update(assignment)
        .where(assignment.c.id.in_(assignment_ids), assignment.c.state == "leased")
        .values(expires_ms=expires_ms)
    )


def expire_leases(connection: Connection, round_id: str, now_ms: int) -> None:
    """Gives the tasks of overdue leases back; the assignments stay, as `expired`.

    A lease that ends more than a day from now was given under a wrong clock and ends too.
    """
    overdue = or_(
        assignment.c.expires_ms <= now_ms, assignment.c.expires_ms > now_ms + MAX_LEASE_MS
    )
    stale = connection.execute(
        select(assignment.c.id, assignment.c.task_id)
        .where(assignment.c.round_id == round_id, assignment.c.state == "leased", overdue)
        .order_by(assignment.c.task_id)
    ).all()
    for row in stale:
        # A task in another transaction's hands is left for the next claim: no deadlock.
        free = connection.execute(
            select(task.c.id).where(task.c.id == row.task_id).with_for_update(skip_locked=True)
        ).one_or_none()
        if free is None:
            continue
        expired = connection.execute(
            update(assignment)
            .where(assignment.c.id == row.id, assignment.c.state == "leased", overdue)
            .values(state="expired")
        )
        if expired.rowcount == 1:
            connection.execute(
                update(task)
                .where(task.c.id == row.task_id)
                .values(leased=task.c.leased - 1, released=True)
            )


def _lease(
    connection: Connection,
    task_id: str,
    round_id: str,
    labeler_id: int,
    *,
    now_ms: int,
    lease_ms: int,
) -> Row[Any]:
    this = select(assignment).where(
        assignment.c.task_id == task_id, assignment.c.labeler_id == labeler_id
    )
    lease = {"state": "leased", "leased_ms": now_ms, "expires_ms": now_ms + lease_ms}
    earlier = connection.execute(this).one_or_none()
    if earlier is not None:  # its lease ran out: the same card again, in the same order
        connection.execute(update(assignment).where(assignment.c.id == earlier.id).values(**lease))
    else:
        connection.execute(
            assignment.insert().values(
                id=secrets.token_urlsafe(18),
                task_id=task_id,
                round_id=round_id,
                labeler_id=labeler_id,
                display_order=_draw_order(connection, task_id),
                **lease,
            )
        )
    connection.execute(update(task).where(task.c.id == task_id).values(leased=task.c.leased + 1))
    return connection.execute(this).one()


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


def read_card(connection: Connection, row: Row[Any]) -> Card:
    """The card of an assignment's row, in its own order."""
    prompt = connection.execute(
        select(task.c.messages, task.c.language).where(task.c.id == row.task_id)
    ).one()
    rows = _responses(connection, row.task_id)
    shown = [rows[positions[0]] for positions in row.display_order]
    return Card(
        assignment_id=row.id,
        task_id=row.task_id,
        messages=tuple(Message(role=role, content=content) for role, content in prompt.messages),
        language=prompt.language,
        responses=tuple(
            CardResponse(label=label, text=row.text, cut_off=row.cut_off)
            for label, row in zip(RESPONSE_LABELS, shown, strict=False)
        ),
    )
