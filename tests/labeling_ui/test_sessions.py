import pytest

from labeling_ui.sessions import SESSION_S, Sessions, is_loopback, request_allowed


@pytest.mark.parametrize("name", ["Ada", "Zoë 陈", "a.b.c", "x" * 60])
def test_a_cookie_signs_its_name_in(name):
    assert Sessions(b"secret", None).read(Sessions(b"secret", None).issue(name, 3)) == (name, 3)


@pytest.mark.parametrize("cookie", [None, "", "x", "...", "QWRh.0.9999999999.00", "ä.ö.ü"])
def test_forged_cookies_sign_nobody_in(cookie):
    assert Sessions(b"secret", None).read(cookie) is None


def test_a_changed_cookie_signs_nobody_in():
    sessions = Sessions(b"secret", None)
    encoded, epoch, expires, signature = sessions.issue("Ada").split(".")
    assert sessions.read(f"{encoded}.{epoch}.{int(expires) + 1}.{signature}") is None
    assert sessions.read(f"{encoded}.1.{expires}.{signature}") is None
    assert sessions.read(f"RXZl.{epoch}.{expires}.{signature}") is None
    assert sessions.read(f"{encoded}.{epoch}.{expires}.{signature}") == ("Ada", 0)


def test_cookies_end_with_their_time_their_key_and_their_token(clock):
    sessions = Sessions(b"secret", "token", clock=clock)
    cookie = sessions.issue("Ada")
    assert Sessions(b"other secret", "token", clock=clock).read(cookie) is None
    assert Sessions(b"secret", "other token", clock=clock).read(cookie) is None
    clock.now += SESSION_S - 1
    assert sessions.read(cookie) == ("Ada", 0)
    clock.now += 2
    assert sessions.read(cookie) is None


def test_tokens():
    assert Sessions(b"secret", None).token_fits("")
    assert Sessions(b"secret", "right").token_fits("right")
    assert not Sessions(b"secret", "right").token_fits("")
    assert not Sessions(b"secret", "right").token_fits("falsch-ä")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.5", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_loopback(host, expected):
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("method", "host", "origin", "loopback_only", "expected"),
    [
        ("GET", "127.0.0.1:7861", None, True, True),
        ("POST", "127.0.0.1:7861", "http://127.0.0.1:7861", True, True),
        ("POST", "[::1]:7861", "http://[::1]:7861", True, True),
        ("POST", "127.0.0.1:7861", None, True, True),  # not a browser
        ("POST", "127.0.0.1:7861", "http://evil.example", True, False),
        ("POST", "127.0.0.1:7861", "http://127.0.0.1:9999", True, False),
        ("POST", "127.0.0.1:7861", "null", True, False),  # a sandboxed frame
        ("GET", "evil.example:7861", None, True, False),  # DNS rebinding
        ("POST", "evil.example:7861", "http://evil.example:7861", True, False),
        ("GET", "", None, True, False),
        ("POST", "labels.example.org", "https://labels.example.org", False, True),
        ("POST", "labels.example.org", "https://evil.example", False, False),
    ],
)
def test_requests_of_other_sites_are_refused(method, host, origin, loopback_only, expected):
    assert request_allowed(method, host, origin, loopback_only=loopback_only) is expected
