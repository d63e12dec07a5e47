"""Rounds in the database: how they are written, found and counted."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, case, func, select

from alignment.errors import LabelError
from alignment.records import CandidateSet
from labeling_ui.candidates import identical_groups
from labeling_ui.cards import RoundStatus
from labeling_ui.schema import assignment, response, round_, task


def find_round(connection: Connection, round_id: str) -> Row[Any]:
    """The round's row, or a LabelError that lists what there is."""
    row = connection.execute(select(round_).where(round_.c.id == round_id)).one_or_none()
    if row is None:
        known = connection.scalars(
            select(round_.c.id).order_by(round_.c.created_ms.desc()).limit(5)
        ).all()
        raise LabelError(
            f"there is no round {round_id!r} in this label database; "
            f"newest rounds: {', '.join(known) or 'none'}"
        )
    return row


def insert_round(
    connection: Connection,
    round_id: str,
    candidates: Sequence[CandidateSet],
    *,
    rankings_per_prompt: int,
    name: str,
    panel: str,
    now_ms: int,
) -> None:
    """Writes a round with its tasks and responses; one with nothing to rank is left out."""
    connection.execute(
        round_.insert().values(
            id=round_id,
            name=name,
            panel=panel,
            rankings_per_prompt=rankings_per_prompt,
            created_ms=now_ms,
        )
    )
    tasks, responses = [], []
    for position, candidate_set in enumerate(candidates):
        task_id = f"{round_id}-{position:06d}"
        shown = [(r.text, r.finish_reason == "length") for r in candidate_set.responses]
        tasks.append(
            {
                "id": task_id,
                "round_id": round_id,
                "position": position,
                "prompt_id": candidate_set.prompt.id,
                "messages": [[m.role, m.content] for m in candidate_set.prompt.messages],
                "language": candidate_set.prompt.language,
                "state": "open" if len(identical_groups(shown)) > 1 else "left_out",
                "wanted": rankings_per_prompt,
            }
        )
        responses += [
            {"task_id": task_id, "position": k, "response_id": r.id, "text": text, "cut_off": cut}
            for k, (r, (text, cut)) in enumerate(zip(candidate_set.responses, shown, strict=True))
        ]
    connection.execute(task.insert(), tasks)
    connection.execute(response.insert(), responses)


def round_status(connection: Connection, row: Row[Any]) -> RoundStatus:
    """Counts a round's tasks and counted rankings."""
    left_out = case((task.c.state == "left_out", 1), else_=0)
    wanted = case((task.c.state == "left_out", task.c.done), else_=task.c.wanted)
    counts = connection.execute(
        select(func.count(), func.sum(left_out), func.sum(wanted), func.sum(task.c.done)).where(
            task.c.round_id == row.id
        )
    ).one()
    labelers = connection.scalar(
        select(func.count(assignment.c.labeler_id.distinct()))
        .select_from(assignment.join(task))
        .where(task.c.round_id == row.id, assignment.c.state == "done")
    )
    return RoundStatus(
        round_id=row.id,
        name=row.name,
        panel=row.panel,
        tasks=counts[0],
        tasks_left_out=counts[1],
        rankings_wanted=counts[2],
        rankings_done=counts[3],
        labelers=labelers or 0,
        frozen_digest=row.frozen_digest,
    )
