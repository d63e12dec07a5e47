"""Drafts: what a labeler has said about a card and not submitted yet, kept on the server.

The page keeps one in the browser as well; the server's is what survives a lost browser, and
what another one goes on from. `content` is the page's own form, opaque here.
"""

from typing import Any

from sqlalchemy import Connection, delete, select, update

from alignment.errors import LabelError
from labeling_ui.database import insert_if_absent
from labeling_ui.schema import assignment, draft, labeler
from labeling_ui.store import LabelStore


def save(store: LabelStore, assignment_id: str, name: str, content: dict[str, Any] | None) -> None:
    """Keeps a draft in place of an earlier one; None only drops that.

    Raises:
        LabelError: a card of someone else, or none.
    """
    this = draft.c.assignment_id == assignment_id
    with store.write() as connection:
        _check_owner(connection, assignment_id, name)
        if content is None:
            connection.execute(delete(draft).where(this))
            return
        values = {"content": content, "saved_ms": store.now_ms()}
        if connection.execute(update(draft).where(this).values(**values)).rowcount == 0:
            insert_if_absent(connection, draft, {"assignment_id": assignment_id, **values})


def find(store: LabelStore, assignment_id: str, name: str) -> Any:
    """The draft of this labeler's card; None where there is none."""
    with store.read() as connection:
        return connection.scalar(
            select(draft.c.content)
            .select_from(draft.join(assignment).join(labeler))
            .where(draft.c.assignment_id == assignment_id, labeler.c.name == name)
        )


def _check_owner(connection: Connection, assignment_id: str, name: str) -> None:
    owner = connection.scalar(
        select(labeler.c.name)
        .select_from(assignment.join(labeler))
        .where(assignment.c.id == assignment_id)
    )
    if owner != name:
        raise LabelError("this card is not yours or does not exist; reload the page for a new one")
