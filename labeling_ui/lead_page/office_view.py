"""How people, guidelines and the audit log look. All words are escaped."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from labeling_ui.accounts import Person
from labeling_ui.audit import AuditEntry
from labeling_ui.guidelines import Guideline
from labeling_ui.lead_page.words import Translate
from labeling_ui.visible_text import visible_text


def people_html(people: Sequence[Person], t: Translate) -> str:
    """Everyone, with what they may do."""
    rows = [
        (
            person.name,
            person.pseudonym,
            t(person.role),
            t("yes") if person.active else t("no"),
            t("yes") if person.has_password else t("no"),
        )
        for person in people
    ]
    columns = ("Name", "Pseudonym", "Role", "Admitted", "Password")
    return _table(columns, rows, "Nobody has signed in yet.", t("People"), t)


def log_html(entries: Sequence[AuditEntry], t: Translate) -> str:
    """What was done, newest first."""
    rows = [
        (
            datetime.fromtimestamp(entry.at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            entry.actor,
            entry.action,
            entry.object,
            ", ".join(f"{name}: {value}" for name, value in (entry.detail or {}).items()),
        )
        for entry in entries
    ]
    columns = ("When (UTC)", "Who", "What", "On", "Detail")
    return _table(columns, rows, "Nothing was done yet.", t("Audit log"), t)


def guidelines_html(newest: Guideline | None, accepted: int, t: Translate) -> str:
    """Which version there is, and who accepted it."""
    if newest is None:
        told = t("There are no guidelines yet.")
    else:
        told = t("Version {version}, accepted by {n}.", version=newest.version, n=accepted)
    note = t("Everyone has to accept a new version before their next card.")
    return str(Markup("<p><strong>{}</strong> {}</p>").format(told, note))


def _table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], nothing: str, name: str, t: Translate
) -> str:
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(
                Markup("<td><bdi>{}</bdi></td>").format(visible_text(str(cell))) for cell in row
            )
        )
        for row in rows
    )
    if not body:
        return str(Markup("<p class='empty'>{}</p>").format(t(nothing)))
    head = Markup("").join(Markup("<th scope='col'>{}</th>").format(t(c)) for c in columns)
    return str(
        Markup(
            "<div class='wide' tabindex='0' role='region' aria-label='{}'>"
            "<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>"
        ).format(name, head, body)
    )
