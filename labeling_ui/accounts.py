"""Accounts: who may sign in, as what, and how they prove it.

A name without a password is a labeler's and needs none. A lead gives names a password by an
invitation: a link that works once, in which the person chooses it. Passwords are kept as
Argon2id hashes, invitation keys as SHA-256.
"""

import hashlib
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, select, update

from alignment.errors import LabelError
from labeling_ui import audit
from labeling_ui.labelers import check_labeler_name, find_or_add_labeler
from labeling_ui.schema import invitation, labeler
from labeling_ui.store import LabelStore

if TYPE_CHECKING:
    from argon2 import PasswordHasher

ROLES = ("labeler", "lead")
MIN_PASSWORD_CHARACTERS = 8
MAX_PASSWORD_CHARACTERS = 200
INVITATION_S = 7 * 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Someone known to the label database. `epoch` rises when all their sign-ins end."""

    name: str
    pseudonym: str
    role: str
    active: bool
    has_password: bool
    epoch: int


def find_person(store: LabelStore, name: str) -> Person | None:
    """The person of that name."""
    with store.read() as connection:
        row = connection.execute(select(labeler).where(labeler.c.name == name)).one_or_none()
    return None if row is None else _person(row)


def people(store: LabelStore) -> list[Person]:
    """Everyone, in the order they came."""
    with store.read() as connection:
        return [_person(row) for row in connection.execute(select(labeler).order_by(labeler.c.id))]


def _person(row: Row[Any]) -> Person:
    return Person(
        name=row.name,
        pseudonym=row.pseudonym,
        role=row.role,
        active=row.active,
        has_password=row.password_hash is not None,
        epoch=row.epoch,
    )


def sign_in(
    store: LabelStore, name: str, password: str, *, accounts_only: bool, panel: str = ""
) -> Person | None:
    """The person who signs in; None if name and password do not belong together.

    Takes the time of a password check also where there is no such name. Without `accounts_only`
    a name that nobody gave a password, new or known, is a labeler's and signs in without one.
    `panel` is that of the round that the page serves: a simulated one takes its labelers only.

    Raises:
        LabelError: a name that nobody can have.
    """
    check_labeler_name(name, panel=panel)
    with store.read() as connection:
        row = connection.execute(select(labeler).where(labeler.c.name == name)).one_or_none()
    if row is not None and row.password_hash is not None:
        fits = _verify(row.password_hash, password)
        return _person(row) if fits and row.active else None
    unnamed = row is None or (row.active and row.role == "labeler")
    if accounts_only or not unnamed:
        _verify(_placeholder_hash(), password)
        return None
    if row is None:
        with store.write() as connection:
            find_or_add_labeler(connection, name, store.now_ms())
    return find_person(store, name)


def invite(store: LabelStore, name: str, *, role: str, actor: str) -> str:
    """A key with which `name` can choose a password, once, within a week.

    Raises:
        LabelError: unknown role, or a name that nobody can have.
    """
    check_labeler_name(name, panel="")
    if role not in ROLES:
        raise LabelError(f"role {role!r} is unknown; accepted: {', '.join(ROLES)}")
    key = secrets.token_urlsafe(24)
    now_ms = store.now_ms()
    with store.write() as connection:
        connection.execute(
            invitation.insert().values(
                key_sha256=_digest(key),
                name=name,
                role=role,
                expires_ms=now_ms + INVITATION_S * 1000,
            )
        )
        audit.record(connection, now_ms, actor, "invite", name, role=role)
    return key


def invited_name(store: LabelStore, key: str) -> str | None:
    """Whom an invitation is for; None if it is unknown, used or too old."""
    with store.read() as connection:
        row = connection.execute(
            select(invitation).where(invitation.c.key_sha256 == _digest(key))
        ).one_or_none()
    usable = row is not None and row.used_ms is None and row.expires_ms > store.now_ms()
    return row.name if usable else None  # type: ignore[union-attr]


def join(store: LabelStore, key: str, password: str | None) -> Person:
    """Uses an invitation: its name gets its role and this password, and older sign-ins end.

    Without a password, as for the link that the command prints, nothing but the role changes.

    Raises:
        LabelError: the invitation is not usable, or the password too short or too long.
    """
    if password is not None:
        _check_password(password)
    hashed = None if password is None else _hasher().hash(password)
    now_ms = store.now_ms()
    with store.write() as connection:
        row = connection.execute(
            update(invitation)
            .where(
                invitation.c.key_sha256 == _digest(key),
                invitation.c.used_ms.is_(None),
                invitation.c.expires_ms > now_ms,
            )
            .values(used_ms=now_ms)
            .returning(invitation.c.name, invitation.c.role)
        ).one_or_none()
        if row is None:
            raise LabelError("this invitation was used before or is too old; ask for a new one")
        find_or_add_labeler(connection, row.name, now_ms)
        changes: dict[str, Any] = {"role": row.role, "active": True}
        if hashed is not None:
            changes |= {"password_hash": hashed, "epoch": labeler.c.epoch + 1}
        connection.execute(update(labeler).where(labeler.c.name == row.name).values(changes))
        audit.record(connection, now_ms, row.name, "join", row.name, role=row.role)
    person = find_person(store, row.name)
    assert person is not None
    return person


def set_active(store: LabelStore, name: str, active: bool, *, actor: str) -> None:
    """Lets a person in or keeps them out; their rankings stay as they are."""
    with store.write() as connection:
        changed = connection.execute(
            update(labeler)
            .where(labeler.c.name == name)
            .values(active=active, epoch=labeler.c.epoch + 1)
        )
        if changed.rowcount != 1:
            raise LabelError(f"there is no labeler {name!r}")
        audit.record(connection, store.now_ms(), actor, "admit" if active else "suspend", name)


def set_role(store: LabelStore, name: str, role: str, *, actor: str) -> None:
    """Gives a person another role, at once and wherever they are signed in.

    Raises:
        LabelError: unknown role or name, one's own role, or a lead's role for a name without a
            password, which anybody could sign in with.
    """
    if role not in ROLES:
        raise LabelError(f"role {role!r} is unknown; accepted: {', '.join(ROLES)}")
    if name == actor:
        raise LabelError("you cannot change your own role; ask another lead")
    with store.write() as connection:
        row = connection.execute(select(labeler).where(labeler.c.name == name)).one_or_none()
        if row is None:
            raise LabelError(f"there is no labeler {name!r}; make an invitation for a new one")
        if role == "lead" and row.password_hash is None:
            raise LabelError(f"{name!r} has no password; make an invitation as a lead instead")
        connection.execute(update(labeler).where(labeler.c.name == name).values(role=role))
        audit.record(
            connection, store.now_ms(), actor, "set role", name, before=row.role, after=role
        )


def _check_password(password: str) -> None:
    if not MIN_PASSWORD_CHARACTERS <= len(password) <= MAX_PASSWORD_CHARACTERS:
        raise LabelError(
            f"the password has {len(password)} characters; choose {MIN_PASSWORD_CHARACTERS} to "
            f"{MAX_PASSWORD_CHARACTERS}"
        )


@cache
def _hasher() -> "PasswordHasher":
    from argon2 import PasswordHasher

    return PasswordHasher()


@cache
def _placeholder_hash() -> str:
    return _hasher().hash(secrets.token_hex(16))


def _verify(hashed: str, password: str) -> bool:
    from argon2.exceptions import VerificationError

    try:
        return _hasher().verify(hashed, password[:MAX_PASSWORD_CHARACTERS])
    except VerificationError:
        return False


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class Throttle:
    """Counts failures by key and says how long to wait after too many of them."""

    def __init__(
        self,
        *,
        failures: int = 8,
        within_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
        keys: int = 10_000,
    ) -> None:
        self._failures, self._within_s, self._clock, self._keys = failures, within_s, clock, keys
        self._seen: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_s(self, *keys: str) -> float:
        """Seconds until the next attempt is looked at; 0 for now."""
        return max(self._wait_one(key) for key in keys)

    def _wait_one(self, key: str) -> float:
        times = self._seen.get(key)
        now = self._clock()
        while times and now - times[0] >= self._within_s:
            times.popleft()
        if not times or len(times) < self._failures:
            return 0.0
        return self._within_s - (now - times[0])

    def failed(self, *keys: str) -> None:
        """Notes a failed attempt under each key."""
        for key in keys:
            self._seen.setdefault(key, deque(maxlen=self._failures)).append(self._clock())
            self._seen.move_to_end(key)
        while len(self._seen) > self._keys:
            self._seen.popitem(last=False)

    def succeeded(self, *keys: str) -> None:
        """Forgets the failures under each key."""
        for key in keys:
            self._seen.pop(key, None)
