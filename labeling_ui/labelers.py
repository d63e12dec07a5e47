"""Who labels: names as people type them, pseudonyms as they leave the database."""

from sqlalchemy import Connection, func, select

from alignment.errors import LabelError
from labeling_ui.database import exclusive
from labeling_ui.schema import labeler

SIMULATED_PREFIX = "simulated-"
"""Names of simulated labelers begin so, and nobody else's may."""
IMPORTED_PREFIX = "imported-"
"""Names of the labelers of imported rankings begin so, and nobody else's may."""
IMPORTED_PANEL = "imported "
"""A round of imported rankings has a panel name that begins so."""
WITHOUT_TEXTS = "without texts"
"""Ends the panel's name where an import only names the responses: nothing to train on."""

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
    reserved = next(
        (p for p in (SIMULATED_PREFIX, IMPORTED_PREFIX) if name.lower().startswith(p)), ""
    )
    expected = _prefix_of(panel)
    if expected and not name.startswith(expected):
        owner = "an import" if expected == IMPORTED_PREFIX else "the simulated panel"
        raise LabelError(
            f"this round belongs to {owner} ({panel}); {name!r} cannot rank in it. Publish the "
            "candidates without a panel for people"
        )
    if not expected and reserved:
        raise LabelError(
            f"names beginning with {reserved!r} are kept for simulated or imported labelers, and "
            "people rank this round; choose another name"
        )


def _prefix_of(panel: str) -> str:
    if not panel:
        return ""
    return IMPORTED_PREFIX if panel.startswith(IMPORTED_PANEL) else SIMULATED_PREFIX


def find_labeler(connection: Connection, name: str) -> int | None:
    """The labeler's row id; None for a name that never claimed anything."""
    return connection.scalar(select(labeler.c.id).where(labeler.c.name == name))


def find_or_add_labeler(
    connection: Connection, name: str, now_ms: int, *, role: str = "labeler"
) -> int:
    """The labeler's row id; a new name gets the next pseudonym, simulated ones keep theirs."""
    known = find_labeler(connection, name)
    if known is not None:
        return known
    exclusive(connection)  # pseudonyms are numbered without gaps or doubles
    known = find_labeler(connection, name)
    if known is not None:
        return known
    number = connection.scalar(select(func.count()).select_from(labeler)) or 0
    drawn = f"{IMPORTED_PREFIX if name.startswith(IMPORTED_PREFIX) else 'person-'}{number + 1}"
    return connection.execute(
        labeler.insert()
        .values(
            name=name,
            pseudonym=name if name.startswith(SIMULATED_PREFIX) else drawn,
            created_ms=now_ms,
            role=role,
        )
        .returning(labeler.c.id)
    ).scalar_one()
