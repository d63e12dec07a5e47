"""What a browser holds to be signed in, and where requests may come from.

The cookie carries a name and the epoch of its account, signed with a key from the label
database, so it survives a restart of the server; with another access token it is worthless.
"""

import base64
import hashlib
import hmac
import ipaddress
import time
from collections.abc import Callable
from urllib.parse import urlsplit

COOKIE = "alignflow_labeler"
SESSION_S = 7 * 24 * 3600
MIN_TOKEN_CHARACTERS = 12


class Sessions:
    """Issues and reads sign-in cookies. `token` is None where only this machine can connect."""

    def __init__(
        self, secret: bytes, token: str | None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._key = hmac.digest(secret, (token or "").encode(), hashlib.sha256)
        self._token = token
        self._clock = clock

    @property
    def token_needed(self) -> bool:
        """True when signing in takes the access token as well."""
        return self._token is not None

    def token_fits(self, given: str) -> bool:
        """True if no token is needed or this is it; takes the same time for every wrong one."""
        return self._token is None or hmac.compare_digest(given.encode(), self._token.encode())

    def issue(self, name: str, epoch: int = 0) -> str:
        """The cookie that signs `name` in; `epoch` comes back with it."""
        encoded = base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")
        return self._signed(f"{encoded}.{epoch}.{int(self._clock()) + SESSION_S}")

    def read(self, cookie: str | None) -> tuple[str, int] | None:
        """Name and epoch of a cookie; None if it is absent, forged or too old."""
        body = (cookie or "").rpartition(".")[0]
        if not body or not hmac.compare_digest(self._signed(body).encode(), cookie.encode()):  # type: ignore[union-attr]
            return None
        encoded, epoch, expires = body.split(".")
        if int(expires) < self._clock():
            return None
        name = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
        return name, int(epoch)

    def _signed(self, body: str) -> str:
        return f"{body}.{hmac.new(self._key, body.encode(), hashlib.sha256).hexdigest()}"


def is_loopback(host: str) -> bool:
    """True if only this machine can reach a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def request_allowed(
    method: str, host_header: str, origin: str | None, *, loopback_only: bool
) -> bool:
    """False for requests that a foreign web page makes with the labeler's browser.

    On loopback the Host header must name this machine, which stops DNS rebinding; whatever may
    change something must come from a page of this very server.
    """
    if loopback_only and not is_loopback(urlsplit(f"//{host_header}").hostname or ""):
        return False
    if method in ("GET", "HEAD") or origin is None:
        return True
    return urlsplit(origin).netloc == host_header
