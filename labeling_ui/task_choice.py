"""Which task a labeler gets next. Every query is an index search that ends at its first hit.

A labeler walks the round's main tasks by position, and `participation.cursor` says how far they
are; what was given back behind the cursor is marked `released` and comes first. So a claim costs
the same after ten thousand rankings as at the first.
"""

import hashlib
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, exists, func, select, update

from labeling_ui.judgement import RoundSettings
from labeling_ui.schema import assignment, participation, response, task

REPEAT_AFTER = 5
"""A card comes back for a repeat after at least this many others."""
_REPEAT_WINDOW = 20
_COUNT_LIMIT = 200


def choose_task(
    connection: Connection,
    round_id: str,
    labeler_id: int,
    name: str,
    mine: Row[Any],
    settings: RoundSettings,
) -> str | None:
    """The id of the next task, its row locked; None when nothing is left for this labeler."""
    kind = _drawn_kind(round_id, name, mine.claims, settings)
    chosen, cursor = _main_task(connection, round_id, labeler_id, mine.cursor)
    if chosen is None:
        return None
    if kind == "repeat":
        special = _repeat_task(connection, round_id, labeler_id)
    elif kind != "main":
        special = connection.scalar(_first(round_id, labeler_id, kind))
    else:
        special = None
    connection.execute(
        update(participation)
        .where(participation.c.round_id == round_id, participation.c.labeler_id == labeler_id)
        .values(claims=mine.claims + 1, cursor=mine.cursor if special else cursor)
    )
    return special or chosen


def _drawn_kind(round_id: str, name: str, claims: int, settings: RoundSettings) -> str:
    # From a hash, so that an interrupted simulated panel meets the same cards again.
    digest = hashlib.sha256(f"{round_id}|{name}|{claims}".encode()).digest()
    draw = int.from_bytes(digest[:8], "big") / 2**64
    for kind in ("gold", "attention", "repeat"):
        share = float(getattr(settings, f"{kind}_share"))
        if draw < share:
            return kind
        draw -= share
    return "main"


def available_to(round_id: str, labeler_id: int, kind: str = "main") -> Any:
    """Condition on tasks: wants another ranking, and this labeler has not settled it."""
    settled = exists().where(
        assignment.c.task_id == task.c.id,
        assignment.c.labeler_id == labeler_id,
        assignment.c.state != "expired",
    )
    return and_(
        task.c.round_id == round_id,
        task.c.kind == kind,
        task.c.state == "open",
        task.c.done + task.c.leased < task.c.wanted,
        ~settled,
    )


def _first(round_id: str, labeler_id: int, kind: str = "main") -> Select[Any]:
    available = available_to(round_id, labeler_id, kind)
    return select(task.c.id, task.c.position).where(available).order_by(task.c.position).limit(1)


def _main_task(
    connection: Connection, round_id: str, labeler_id: int, cursor: int
) -> tuple[str | None, int]:
    """The task and where the cursor goes if it is taken."""
    first = _first(round_id, labeler_id).with_for_update(of=task)
    again = connection.execute(first.where(task.c.released.is_(True))).one_or_none()
    if again is not None:
        return again.id, cursor
    ahead = connection.execute(first.where(task.c.position >= cursor)).one_or_none()
    return (ahead.id, ahead.position + 1) if ahead is not None else (None, cursor)


def _repeat_task(connection: Connection, round_id: str, labeler_id: int) -> str | None:
    """A copy of a card this labeler ranked a while ago, made when it is needed."""
    rows = connection.execute(
        select(task)
        .join(assignment, assignment.c.task_id == task.c.id)
        .where(
            assignment.c.labeler_id == labeler_id,
            assignment.c.finished_ms.is_not(None),
            assignment.c.round_id == round_id,
            assignment.c.state == "done",
            task.c.kind == "main",
        )
        .order_by(assignment.c.finished_ms.desc())
        .offset(REPEAT_AFTER)
        .limit(_REPEAT_WINDOW)
    ).all()
    for row in reversed(rows):
        copy_id = f"{row.id}~{labeler_id}"
        if connection.scalar(select(task.c.id).where(task.c.id == copy_id)) is None:
            _insert_copy(connection, row, copy_id, labeler_id)
            return copy_id
    return None


def _insert_copy(connection: Connection, row: Row[Any], copy_id: str, labeler_id: int) -> None:
    values = row._asdict() | {
        "id": copy_id,
        "kind": "repeat",
        "prompt_id": f"repeat~{labeler_id}~{row.prompt_id}",
        "repeat_of": row.id,
        "for_labeler_id": labeler_id,
        "state": "open",
        "wanted": 1,
        "done": 0,
        "leased": 0,
        "skips": 0,
        "released": False,
    }
    connection.execute(task.insert().values(**values))
    originals = connection.execute(select(response).where(response.c.task_id == row.id)).all()
    copies = [r._asdict() | {"task_id": copy_id} for r in originals]
    connection.execute(response.insert(), copies)


def count_open(connection: Connection, round_id: str, labeler_id: int, cursor: int) -> int:
    """Tasks still open to a labeler, counted up to 200: more is only said to be more."""
    available = available_to(round_id, labeler_id)
    count = 0
    for place in (
        and_(task.c.released.is_(True), task.c.position < cursor),
        task.c.position >= cursor,
    ):
        some = select(task.c.id).where(available, place).limit(_COUNT_LIMIT).subquery()
        count += connection.scalar(select(func.count()).select_from(some)) or 0
    return min(count, _COUNT_LIMIT)
