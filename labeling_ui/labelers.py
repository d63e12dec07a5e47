"""Who labels: names as people type them, pseudonyms as they leave the database."""

from sqlalchemy import Connection, func, select

from alignment.errors import LabelError
from labeling_ui.schema import labeler

SIMULATED_PREFIX = "simulated-"
"""Names of simulated labelers begin so, and nobody else's may."""

MAX_NAME_CHARACTERS = 60


def check_labeler_name(name: str, *, panel: str) -> None:
    """Refuses empty, overlong and unprintable names, and keeps people and simulations apart."""
    if not name.strip() or name != name.strip() or len(name) > MAX_NAME_CHARACTERS:
        raise LabelError(
            f"labeler name {name[:80]!r} is not accepted: 1 to {MAX_NAME_CHARACTERS} characters "
            "without spaces at either end"
        )
    if not name.isprintable():
        raise LabelError(f"labeler name {name!r} has control characters; use letters and digits")
    if panel and not name.startswith(SIMULATED_PREFIX):
        raise LabelError(
            f"this round belongs to the simulated panel ({panel}); {name!r} cannot rank in it. "
            "Publish the candidates without a panel for people"
        )
    if not panel and name.lower().startswith(SIMULATED_PREFIX):
        raise LabelError(
            f"names beginning with {SIMULATED_PREFIX!r} are kept for simulated labelers, and "
            "people rank this round; choose another name"
        )


def find_labeler(connection: Connection, name: str) -> int | None:
    """The labeler's row id; None for a name that never claimed anything."""
    return connection.scalar(select(labeler.c.id).where(labeler.c.name == name))


def find_or_add_labeler(connection: Connection, name: str, now_ms: int) -> int:
    """The labeler's row id; a new name gets the next pseudonym, simulated ones keep theirs."""
    known = find_labeler(connection, name)
    if known is not None:
        return known
    number = connection.scalar(select(func.count()).select_from(labeler)) or 0
    simulated = name.startswith(SIMULATED_PREFIX)
    return connection.execute(
        labeler.insert()
        .values(
            name=name,
            pseudonym=name if simulated else f"person-{number + 1}",
            created_ms=now_ms,
        )
        .returning(labeler.c.id)
    ).scalar_one()
