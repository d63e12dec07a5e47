"""The one gate in front of the site: who may ask for what, and what a browser may do with it.

A request must come from a page of this server. Below a Gradio page only the routes that the
page itself uses exist: Gradio brings dozens more, some of which ask nobody who calls. Those of
the lead's page answer leads alone, before Gradio sees the request.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection

from labeling_ui.identity import Identity
from labeling_ui.sessions import request_allowed

LEAD_PAGE = "/lead"
RANKING_PAGE = "/rank"

# Gradio evaluates its templates, hence 'unsafe-eval'; nothing outside this host is reachable.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    b"content-security-policy": CONTENT_SECURITY_POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",
    b"x-frame-options": b"DENY",
}
ASSETS = ("/static/", "/assets/", "/svelte/", "/theme.css", "/favicon.ico", "/manifest.json")
"""Files of Gradio's package, the same for everyone."""
USED_BY_A_PAGE = frozenset(
    {
        "",
        "/config",
        "/gradio_api/component_server",
        "/gradio_api/queue/join",
        "/gradio_api/queue/data",
    }
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Gate:
    """ASGI middleware: refuses what nobody may ask for, adds the security headers."""

    def __init__(self, application: Application, identity: Identity, loopback_only: bool) -> None:
        self._application = application
        self._identity = identity
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; WebSockets are closed, nothing here uses them."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                kept = [h for h in message.get("headers", []) if h[0] not in SECURITY_HEADERS]
                message["headers"] = [*kept, *SECURITY_HEADERS.items()]
            await send(message)

        refusal = await self._refusal(scope)
        answer = self._application if refusal is None else refusal
        await answer(scope, receive, send_with_headers)

    async def _refusal(self, scope: Scope) -> Response | None:
        asked = HTTPConnection(scope)
        allowed = request_allowed(
            scope["method"],
            asked.headers.get("host", ""),
            asked.headers.get("origin"),
            loopback_only=self._loopback_only,
        )
        if not allowed:
            return JSONResponse({"detail": "requests from other sites are refused"}, 403)
        for page in (LEAD_PAGE, RANKING_PAGE):
            if scope["path"] == page or scope["path"].startswith(page + "/"):
                return await self._refusal_below(page, scope["path"][len(page) :], asked)
        return None

    async def _refusal_below(self, page: str, path: str, asked: HTTPConnection) -> Response | None:
        """`path` is what follows the page's own; the page itself is where people may end up."""
        if path.startswith(ASSETS):
            return None
        path = path.rstrip("/")
        if path not in USED_BY_A_PAGE:
            return JSONResponse({"detail": "not found"}, 404)
        if page == RANKING_PAGE and path:
            return None  # Gradio asks who calls, and each function again
        person = await run_in_threadpool(self._identity.person, asked.cookies)
        if person is not None and (page == RANKING_PAGE or person.role == "lead"):
            return None
        if not path:
            return RedirectResponse("/sign-in" if person is None else RANKING_PAGE + "/", 303)
        return JSONResponse({"detail": "this needs a lead's sign-in"}, 401)
