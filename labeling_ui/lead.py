"""What a lead does to rounds: publish, pause, open, close, freeze; and how a round goes.

Every action is in the audit log.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sqlalchemy import func, select, update

from alignment.errors import LabelError
from alignment.records import CandidateSet
from labeling_ui import audit
from labeling_ui.cards import RoundStatus
from labeling_ui.checks import CheckItem
from labeling_ui.judgement import RoundSettings
from labeling_ui.rounds import find_round
from labeling_ui.schema import annotation, assignment, labeler, response, round_, task
from labeling_ui.store import LabelStore

RoundState = Literal["open", "paused", "closed"]
HOUR_MS = 3600 * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Rankings of a round by hour since its first one, and the hours left at the last pace.

    `by_hour` pairs hours, 1 the first, with counts. `hours_left` is an 80 % interval; None where
    there is too little to tell.
    """

    by_hour: tuple[tuple[int, int], ...]
    hours_left: tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundEvents:
    """What happened in a round besides rankings, each by name and count, most first.

    `leaks` counts responses that say what wrote them, of `responses` in all.
    """

    by_labeler: tuple[tuple[str, int], ...]
    skips: tuple[tuple[str, int], ...]
    unsafe: tuple[tuple[str, int], ...]
    leaks: int
    leak_example: str
    responses: int


def publish_round(
    store: LabelStore,
    candidates: Sequence[CandidateSet],
    *,
    rankings_per_prompt: int,
    name: str,
    settings: RoundSettings,
    checks: Sequence[CheckItem],
    actor: str,
) -> RoundStatus:
    """As `LabelStore.publish_round`, for people, with an entry in the audit log."""
    status = store.publish_round(
        candidates,
        rankings_per_prompt=rankings_per_prompt,
        name=name,
        settings=settings,
        checks=checks,
    )
    with store.write() as connection:
        told = {"name": status.name, "rankings_per_prompt": rankings_per_prompt}
        shares = {k: v for k, v in settings.to_json().items() if k.endswith("_share") and v}
        audit.record(
            connection, store.now_ms(), actor, "publish", status.round_id, **told, **shares
        )
    return status


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
    hours = Counter((finished_ms - finished[0]) // HOUR_MS + 1 for finished_ms in finished)
    left = status.rankings_wanted - status.rankings_done
    return Pace(
        by_hour=tuple(sorted(hours.items())),
        hours_left=hours_left(finished[-window:], left),
    )


def hours_left(finished_ms: Sequence[int], left: int) -> tuple[float, float] | None:
    """80 % interval of the hours that `left` rankings take, if the gaps between the last ones
    are what is to come; None from fewer than 5 rankings.
    """
    if left <= 0:
        return 0.0, 0.0
    gaps = np.diff(np.asarray(finished_ms, dtype=np.float64)) / HOUR_MS
    if len(gaps) < 4 or gaps.sum() == 0:
        return None
    drawn = np.random.default_rng(0).choice(gaps, size=(400, len(gaps)))
    low, high = np.quantile(drawn.mean(axis=1) * left, [0.1, 0.9])
    return float(low), float(high)


def round_events(store: LabelStore, round_id: str) -> RoundEvents:
    """Counts of who ranked, what was skipped and called unsafe, and of responses not blind."""
    mine = assignment.c.round_id == round_id
    with store.read() as connection:
        ranked = connection.execute(
            select(labeler.c.pseudonym, func.count())
            .select_from(assignment.join(labeler))
            .where(mine, assignment.c.state.in_(["done", "surplus"]))
            .group_by(labeler.c.pseudonym)
        ).all()
        skips = connection.execute(
            select(assignment.c.skip_reason, func.count())
            .where(mine, assignment.c.state == "skipped")
            .group_by(assignment.c.skip_reason)
        ).all()
        flags = connection.scalars(
            select(annotation.c.flags)
            .join(assignment, assignment.c.current_annotation == annotation.c.id)
            .where(mine, annotation.c.flags.is_not(None))
        ).all()
        of_round = select(response.c.leak).join(task).where(task.c.round_id == round_id)
        phrases = connection.scalars(of_round.where(response.c.leak != "")).all()
        responses = connection.scalar(select(func.count()).select_from(of_round.subquery())) or 0
    unsafe = Counter(category for said in flags for _, category in said)
    return RoundEvents(
        by_labeler=tuple(sorted((str(n), int(k)) for n, k in ranked)),
        skips=tuple(sorted(((str(n), int(k)) for n, k in skips), key=lambda s: (-s[1], s[0]))),
        unsafe=tuple(unsafe.most_common()),
        leaks=len(phrases),
        leak_example=phrases[0] if phrases else "",
        responses=responses,
    )


def labels_stamp(store: LabelStore, round_id: str) -> tuple[int, int]:
    """Changes whenever a ranking of the round comes or is revised: count and newest time."""
    with store.read() as connection:
        row = connection.execute(
            select(func.count(), func.max(annotation.c.created_ms))
            .select_from(annotation.join(assignment))
            .where(assignment.c.round_id == round_id)
        ).one()
    return row[0], row[1] or 0
