"""A labeler's own work: what they ranked, how to open it again, and signs of life."""

from collections.abc import Sequence

from sqlalchemy import Connection, func, select

from alignment.errors import LabelError
from labeling_ui.assignment import extend, read_card
from labeling_ui.cards import FinishedCard, ReopenedCard
from labeling_ui.judgement import Judgement, RoundSettings
from labeling_ui.schema import annotation, assignment, labeler, round_, task

EXCERPT_CHARACTERS = 90


def finished_cards(
    connection: Connection, round_id: str, name: str, limit: int
) -> list[FinishedCard]:
    """The labeler's finished cards of a round, newest first."""
    revisions = (
        select(func.count()).where(annotation.c.assignment_id == assignment.c.id).scalar_subquery()
    )
    rows = connection.execute(
        select(
            assignment.c.id,
            assignment.c.finished_ms,
            assignment.c.state,
            task.c.messages,
            revisions.label("revisions"),
        )
        .select_from(assignment.join(task).join(labeler))
        .where(
            labeler.c.name == name,
            assignment.c.round_id == round_id,
            assignment.c.finished_ms.is_not(None),
        )
        .order_by(assignment.c.finished_ms.desc(), assignment.c.id)
        .limit(limit)
    ).all()
    return [
        FinishedCard(
            assignment_id=row.id,
            finished_ms=row.finished_ms,
            state=row.state,
            excerpt=row.messages[-1][1][:EXCERPT_CHARACTERS],
            revisions=row.revisions,
        )
        for row in rows
    ]


def reopened_card(connection: Connection, assignment_id: str, name: str) -> ReopenedCard:
    """The card of a labeler's assignment with all that was said about it."""
    row = connection.execute(
        select(assignment)
        .join(labeler)
        .where(assignment.c.id == assignment_id, labeler.c.name == name)
    ).one_or_none()
    if row is None:
        raise LabelError("this card is not yours or does not exist; reload the page for a new one")
    said = connection.execute(
        select(annotation)
        .where(annotation.c.assignment_id == assignment_id)
        .order_by(annotation.c.revision)
    ).all()
    return ReopenedCard(
        round_id=row.round_id,
        card=read_card(connection, row),
        judgements=tuple(Judgement.from_row(revision) for revision in said),
    )


def keep_alive(
    connection: Connection, assignment_ids: Sequence[str], name: str, now_ms: int
) -> int:
    """Extends the leases that this labeler holds among the given ones."""
    rows = connection.execute(
        select(assignment.c.id, round_.c.settings)
        .select_from(assignment.join(labeler))
        .join(round_, round_.c.id == assignment.c.round_id)
        .where(
            assignment.c.id.in_(list(assignment_ids)[:2]),
            labeler.c.name == name,
            assignment.c.state == "leased",
        )
        # What is free alone: it must not wait for one card with the other in hand.
        .with_for_update(of=assignment, skip_locked=True, key_share=True)
    ).all()
    for row in rows:
        lease_ms = round(RoundSettings.from_json(row.settings).lease_s * 1000)
        extend(connection, [row.id], now_ms + lease_ms)
    return len(rows)
