"""Guidelines in versions: what labelers accepted before they ranked, kept with every ranking."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, func, select

from alignment.errors import LabelError
from labeling_ui import audit
from labeling_ui.database import exclusive, insert_if_absent
from labeling_ui.labelers import find_or_add_labeler
from labeling_ui.schema import acceptance, guideline, labeler
from labeling_ui.store import LabelStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Guideline:
    """One version, as Markdown; the Chinese text may be empty."""

    version: int
    text_en: str
    text_zh: str


def publish(store: LabelStore, text_en: str, text_zh: str = "", *, actor: str) -> Guideline:
    """Makes a new version, which everyone has to accept before their next card.

    The text of the current version again changes nothing.
    """
    if not text_en.strip():
        raise LabelError("the guidelines are empty; write what makes a response better")
    with store.write() as connection:
        exclusive(connection)
        newest = connection.execute(_newest()).one_or_none()
        if newest is not None and (newest.text_en, newest.text_zh) == (text_en, text_zh):
            return _guideline(newest)
        version = 1 if newest is None else newest.version + 1
        now_ms = store.now_ms()
        connection.execute(
            guideline.insert().values(
                version=version, text_en=text_en, text_zh=text_zh, created_ms=now_ms
            )
        )
        audit.record(connection, now_ms, actor, "publish guidelines", f"version {version}")
    return Guideline(version=version, text_en=text_en, text_zh=text_zh)


def current(store: LabelStore) -> Guideline | None:
    """The newest version; None where there are no guidelines."""
    with store.read() as connection:
        row = connection.execute(_newest()).one_or_none()
    return None if row is None else _guideline(row)


def to_accept(store: LabelStore, name: str) -> Guideline | None:
    """The newest version if this labeler has not accepted it."""
    with store.read() as connection:
        row = connection.execute(_newest()).one_or_none()
        if row is None:
            return None
        accepted = connection.scalar(
            select(func.count())
            .select_from(acceptance.join(labeler))
            .where(labeler.c.name == name, acceptance.c.version == row.version)
        )
    return None if accepted else _guideline(row)


def accept(store: LabelStore, name: str, version: int) -> None:
    """Notes that a labeler accepted a version. Raises LabelError for one there is not."""
    with store.write() as connection:
        known = connection.scalar(select(guideline.c.version).where(guideline.c.version == version))
        if known is None:
            raise LabelError(f"there is no version {version} of the guidelines; reload the page")
        now_ms = store.now_ms()
        labeler_id = find_or_add_labeler(connection, name, now_ms)
        values = {"labeler_id": labeler_id, "version": version, "accepted_ms": now_ms}
        insert_if_absent(connection, acceptance, values)


def acceptances(store: LabelStore) -> int:
    """How many people accepted the newest version."""
    newest = select(func.max(guideline.c.version)).scalar_subquery()
    with store.read() as connection:
        query = select(func.count()).where(acceptance.c.version == newest)
        return connection.scalar(query) or 0


def _newest() -> Any:
    return select(guideline).order_by(guideline.c.version.desc()).limit(1)


def _guideline(row: Row[Any]) -> Guideline:
    return Guideline(version=row.version, text_en=row.text_en, text_zh=row.text_zh)
