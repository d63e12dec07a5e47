"""Who makes a request: the signed cookie, checked against the label database at every call.

So a person who is suspended, or whose password changed, is out at once and everywhere, and what
a role may do is looked up and never remembered by the browser.
"""

from collections.abc import Mapping

from labeling_ui.accounts import Person, find_person
from labeling_ui.sessions import COOKIE, Sessions
from labeling_ui.store import LabelStore


class Identity:
    """Reads and issues sign-ins of one label database."""

    def __init__(self, store: LabelStore, sessions: Sessions) -> None:
        self._store = store
        self.sessions = sessions

    def person(self, cookies: Mapping[str, str]) -> Person | None:
        """Whom the cookies sign in; None if nobody, or someone who is kept out by now."""
        said = self.sessions.read(cookies.get(COOKIE))
        if said is None:
            return None
        name, epoch = said
        person = find_person(self._store, name)
        if person is None or not person.active or person.epoch != epoch:
            return None
        return person

    def lead(self, cookies: Mapping[str, str]) -> Person | None:
        """As `person`, but only a lead."""
        person = self.person(cookies)
        return person if person is not None and person.role == "lead" else None

    def cookie_for(self, person: Person) -> str:
        """The cookie that signs a person in."""
        return self.sessions.issue(person.name, person.epoch)
