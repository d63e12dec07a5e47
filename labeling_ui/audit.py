"""Who changed what, for a lead to read later. Rankings are not here: annotations keep those."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from labeling_ui.schema import audit
from labeling_ui.store import LabelStore


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One action: when (milliseconds since 1970), whose, on what."""

    at_ms: int
    actor: str
    action: str
    object: str
    detail: Any


def record(
    connection: Connection, now_ms: int, actor: str, action: str, what: str, **detail: Any
) -> None:
    """Writes an entry in the transaction of the change itself."""
    connection.execute(
        audit.insert().values(
            at_ms=now_ms, actor=actor, action=action, object=what, detail=detail or None
        )
    )


def entries(store: LabelStore, *, limit: int = 200) -> list[AuditEntry]:
    """The newest entries first."""
    query = select(audit).order_by(audit.c.id.desc()).limit(limit)
    with store.read() as connection:
        return [
            AuditEntry(
                at_ms=row.at_ms,
                actor=row.actor,
                action=row.action,
                object=row.object,
                detail=row.detail,
            )
            for row in connection.execute(query)
        ]
