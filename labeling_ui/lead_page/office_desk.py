"""People, guidelines and the audit log."""

from collections.abc import Callable
from typing import Any

from labeling_ui import accounts, audit, guidelines
from labeling_ui.lead_page.office_view import guidelines_html, log_html, people_html
from labeling_ui.lead_page.wiring import Visitor
from labeling_ui.store import LabelStore


class OfficeDesk:
    """Handlers, each for a lead who has been checked: `work(visitor, *values)`."""

    def __init__(self, store: LabelStore) -> None:
        self._store = store

    def people(self, visitor: Visitor) -> str:
        """Everyone who ever signed in or was invited and joined."""
        return people_html(accounts.people(self._store), visitor.t)

    def log(self, visitor: Visitor) -> str:
        """The newest entries of the audit log."""
        return log_html(audit.entries(self._store), visitor.t)

    def guidelines(self, visitor: Visitor) -> list[str]:
        """The current guidelines: who accepted them, and their texts."""
        newest = guidelines.current(self._store)
        told = guidelines_html(newest, guidelines.acceptances(self._store), visitor.t)
        return [told, newest.text_en, newest.text_zh] if newest else [told, "", ""]

    def publish_guidelines(self, visitor: Visitor, text_en: str, text_zh: str) -> list[str]:
        """Makes a new version of the guidelines."""
        guidelines.publish(self._store, text_en, text_zh, actor=visitor.name)
        return self.guidelines(visitor)

    def invite(self, visitor: Visitor, name: str, role: str) -> str:
        """The address of an invitation."""
        key = accounts.invite(self._store, name.strip(), role=role, actor=visitor.name)
        return f"{visitor.origin}/join?key={key}"

    def give_role(self, visitor: Visitor, name: str, role: str) -> str:
        """Changes what a person may do."""
        accounts.set_role(self._store, name.strip(), role, actor=visitor.name)
        return self.people(visitor)

    def admission(self, active: bool) -> Callable[..., Any]:
        """Work that lets a person in or keeps them out."""

        def admit(visitor: Visitor, name: str) -> str:
            accounts.set_active(self._store, name.strip(), active, actor=visitor.name)
            return self.people(visitor)

        return admit
