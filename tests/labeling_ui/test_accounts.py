import pytest
from argon2 import PasswordHasher

from alignment.errors import LabelError
from labeling_ui import accounts, audit, guidelines
from labeling_ui.accounts import Throttle
from labeling_ui.identity import Identity
from labeling_ui.sessions import COOKIE, Sessions

PASSWORD = "correct horse"


@pytest.fixture(autouse=True)
def _cheap_hashes(monkeypatch):
    """Argon2id as ever, at a cost that is none: hashes are meant to take long."""
    cheap = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr(accounts, "_hasher", lambda: cheap)


def signed_in(store, name, password="", accounts_only=False):
    return accounts.sign_in(store, name, password, accounts_only=accounts_only)


def test_an_invitation_makes_an_account_once(store):
    key = accounts.invite(store, "Ada", role="lead", actor="test")
    assert accounts.invited_name(store, key) == "Ada"
    assert signed_in(store, "Ada", PASSWORD, accounts_only=True) is None
    person = accounts.join(store, key, PASSWORD)
    assert (person.role, person.has_password, person.active) == ("lead", True, True)
    assert accounts.invited_name(store, key) is None
    with pytest.raises(LabelError, match="used before or is too old"):
        accounts.join(store, key, "another password")
    assert signed_in(store, "Ada", PASSWORD, accounts_only=True) == person
    assert signed_in(store, "Ada", "another password") is None
    assert signed_in(store, "Ada", "") is None


def test_an_invitation_ends_with_its_time(store, clock):
    key = accounts.invite(store, "Ada", role="labeler", actor="test")
    clock.now += accounts.INVITATION_S + 1
    with pytest.raises(LabelError, match="too old"):
        accounts.join(store, key, PASSWORD)


def test_neither_password_nor_key_is_in_the_database(store, store_path):
    key = accounts.invite(store, "Ada", role="labeler", actor="test")
    accounts.join(store, key, PASSWORD)
    store.close()
    content = store_path.read_bytes()
    assert b"$argon2id$" in content
    assert PASSWORD.encode() not in content
    assert key.encode() not in content


@pytest.mark.parametrize("password", ["", "seven77", "x" * 201])
def test_passwords_that_are_refused(store, password):
    key = accounts.invite(store, "Ada", role="labeler", actor="test")
    with pytest.raises(LabelError, match="choose 8 to 200"):
        accounts.join(store, key, password)
    assert accounts.invited_name(store, key) == "Ada"  # still good for another try


def test_names_without_a_password(store):
    assert signed_in(store, "Bob", accounts_only=True) is None
    assert signed_in(store, "Bob").role == "labeler"
    assert signed_in(store, "Bob", "anything").name == "Bob"
    # A lead without a password came by the printed link; the name alone opens nothing.
    accounts.join(store, accounts.invite(store, "boss", role="lead", actor="test"), None)
    assert signed_in(store, "boss") is None


def test_who_is_suspended_is_out_at_once_and_everywhere(store):
    identity = Identity(store, Sessions(store.session_secret(), None))
    person = signed_in(store, "Bob")
    cookies = {COOKIE: identity.cookie_for(person)}
    assert identity.person(cookies) == person
    assert identity.lead(cookies) is None
    accounts.set_active(store, "Bob", False, actor="boss")
    assert identity.person(cookies) is None
    assert signed_in(store, "Bob") is None
    accounts.set_active(store, "Bob", True, actor="boss")
    assert identity.person(cookies) is None  # the old sign-in stays ended
    assert signed_in(store, "Bob") is not None


def test_a_new_password_ends_older_sign_ins(store):
    identity = Identity(store, Sessions(store.session_secret(), None))
    cookies = {COOKIE: identity.cookie_for(signed_in(store, "Ada"))}
    accounts.join(store, accounts.invite(store, "Ada", role="lead", actor="test"), PASSWORD)
    assert identity.person(cookies) is None


def test_everything_is_in_the_audit_log(store):
    key = accounts.invite(store, "Ada", role="labeler", actor="boss")
    accounts.join(store, key, PASSWORD)
    accounts.set_active(store, "Ada", False, actor="boss")
    told = [(entry.actor, entry.action, entry.object) for entry in audit.entries(store)]
    expected = [("boss", "suspend", "Ada"), ("Ada", "join", "Ada"), ("boss", "invite", "Ada")]
    assert told == expected


def test_throttle():
    now = [0.0]
    throttle = Throttle(failures=3, within_s=60, clock=lambda: now[0], keys=2)
    for _ in range(3):
        assert throttle.wait_s("a", "b") == 0
        throttle.failed("a")
    assert throttle.wait_s("a", "b") == 60
    assert throttle.wait_s("b") == 0
    now[0] += 59.5
    assert throttle.wait_s("a") == 0.5
    now[0] += 0.5
    assert throttle.wait_s("a") == 0
    for _ in range(3):
        throttle.failed("a")
    throttle.succeeded("a")
    assert throttle.wait_s("a") == 0


def test_guidelines_have_versions_that_each_labeler_accepts(store):
    assert guidelines.to_accept(store, "Ada") is None
    first = guidelines.publish(store, "Be fair.", actor="boss")
    assert guidelines.publish(store, "Be fair.", actor="boss") == first
    assert guidelines.to_accept(store, "Ada") == first
    guidelines.accept(store, "Ada", 1)
    guidelines.accept(store, "Ada", 1)
    assert guidelines.to_accept(store, "Ada") is None
    assert guidelines.to_accept(store, "Bob") == first
    second = guidelines.publish(store, "Be fair and quick.", actor="boss")
    assert second.version == 2
    assert guidelines.to_accept(store, "Ada") == second
    with pytest.raises(LabelError, match="no version 3"):
        guidelines.accept(store, "Ada", 3)
