"""What a lead does to rounds: pause, open, close, freeze. Every action is in the audit log."""

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import select, update

from alignment.errors import LabelError
from labeling_ui import audit
from labeling_ui.rounds import find_round
from labeling_ui.schema import assignment, round_
from labeling_ui.store import LabelStore

RoundState = Literal["open", "paused", "closed"]
HOUR_MS = 3600 * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Rankings of a round by hour of its work, and the hours that are left at the last pace."""

    by_hour: tuple[tuple[int, int], ...]
    hours_left: float | None


def set_round_state(store: LabelStore, round_id: str, state: RoundState, *, actor: str) -> None:
    """Opens, pauses or closes a round. Cards that people hold can still be submitted.

    Raises:
        LabelError: unknown round or state, a frozen round, or a closed one to be opened.
    """
    if state not in ("open", "paused", "closed"):
        raise LabelError(f"round state {state!r} is unknown; accepted: open, paused, closed")
    with store.write() as connection:
        row = find_round(connection, round_id, lock="alone")
        if row.frozen_digest is not None:
            raise LabelError(f"round {round_id} is frozen; nothing about it changes any more")
        if row.state == "closed" and state != "closed":
            raise LabelError(f"round {round_id} is closed for good; freeze it, or publish another")
        connection.execute(update(round_).where(round_.c.id == round_id).values(state=state))
        audit.record(connection, store.now_ms(), actor, f"set {state}", round_id, before=row.state)


def freeze_round(store: LabelStore, round_id: str, *, allow_incomplete: bool, actor: str) -> str:
    """As `LabelStore.freeze`, with an entry in the audit log."""
    digest = store.freeze(round_id, allow_incomplete=allow_incomplete)
    with store.write() as connection:
        audit.record(connection, store.now_ms(), actor, "freeze", round_id, digest=digest)
    return digest


def round_pace(store: LabelStore, round_id: str, *, window: int = 100) -> Pace:
    """How fast a round goes: the last `window` rankings say how long the rest will take."""
    with store.read() as connection:
        finished = connection.scalars(
            select(assignment.c.finished_ms)
            .where(assignment.c.round_id == round_id, assignment.c.state == "done")
            .order_by(assignment.c.finished_ms)
        ).all()
    status = store.progress(round_id)
    hours: dict[int, int] = {}
    for finished_ms in finished:
        hours[finished_ms // HOUR_MS] = hours.get(finished_ms // HOUR_MS, 0) + 1
    recent = finished[-window:]
    left = status.rankings_wanted - status.rankings_done
    hours_left = None
    if len(recent) >= 5 and recent[-1] > recent[0]:
        hours_left = left * (recent[-1] - recent[0]) / (len(recent) - 1) / HOUR_MS
    first = min(hours, default=0)
    return Pace(
        by_hour=tuple((hour - first + 1, count) for hour, count in sorted(hours.items())),
        hours_left=hours_left if left > 0 else 0.0,
    )
