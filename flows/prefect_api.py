"""The Prefect server as commands meet it: named, answering, and letting us in, or a clear error."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from alignment.errors import ServerError
from flows.environment import NO_TELEMETRY

FLOWS = ("align", "align_stage")
"""Names of the deployed flows."""
POOL = "alignflow"
_UNAUTHORIZED = (401, 403)


def require_server_named() -> str:
    """The URL of the Prefect API that commands and workers use.

    Raises:
        ServerError: PREFECT_API_URL is not set and no services of `alignflow up` run here.
    """
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        raise ServerError(
            "no Prefect server is named: start one with `alignflow up` and run this in the same "
            "folder, or set PREFECT_API_URL, e.g. http://127.0.0.1:4200/api"
        )
    for name, value in NO_TELEMETRY.items():
        os.environ.setdefault(name, value)
    return url


@contextmanager
def server_errors(url: str) -> Iterator[None]:
    """Tell a server that is away, or that refuses us, in words a reader can act on.

    Raises:
        ServerError: instead of what httpx or Prefect raises for these.
    """
    import httpx
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        yield
    except PrefectHTTPStatusError as error:
        status = error.response.status_code
        if status in _UNAUTHORIZED:
            given = "a wrong or expired one" if os.environ.get(AUTH_VARIABLE) else "none"
            raise ServerError(
                f"the Prefect server at {url} asks for a user and password and was given {given} "
                f"(status {status}): set {AUTH_VARIABLE} to what the server was started with as "
                "PREFECT_SERVER_API_AUTH_STRING, e.g. admin:secret, and run the same command again"
            ) from error
        raise ServerError(
            f"the Prefect server at {url} refused a request with status {status}: "
            f"{error.response.text[:300]}"
        ) from error
    except (httpx.TransportError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "Failed to reach API" not in str(error):
            raise
        raise ServerError(
            f"the Prefect server at {url} does not answer ({error}): start it (`alignflow up`, or "
            "`prefect server start`) and run the same command again; nothing was lost"
        ) from error


AUTH_VARIABLE = "PREFECT_API_AUTH_STRING"
