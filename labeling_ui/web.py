"""The web application: sign-in pages, security headers, and the ranking page mounted at /rank.

Every request passes one gate: it must come from a page of this server, and every answer leaves
with a content security policy that lets the browser talk to nobody else.
"""

import html
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import parse_qs, urlencode

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response

from alignment.errors import LabelError
from labeling_ui.labelers import MAX_NAME_CHARACTERS, check_labeler_name
from labeling_ui.ranking_page import ranking_page
from labeling_ui.sessions import COOKIE, SESSION_S, Sessions, request_allowed
from labeling_ui.store import LabelStore

STATIC = Path(__file__).parent / "static"
PAGE_PATH = "/rank"
MAX_FORM_BYTES = 4096

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

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


def web_application(
    store: LabelStore, *, round_id: str | None, token: str | None, loopback_only: bool
) -> FastAPI:
    """The whole site for one label store; `token` is what signing in takes besides a name."""
    import gradio

    sessions = Sessions(store.session_secret(), token)
    site = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_sign_in(site, sessions)
    site.add_middleware(Gate, loopback_only=loopback_only)
    return gradio.mount_gradio_app(
        site,
        ranking_page(store, round_id, sessions),
        path=PAGE_PATH,
        auth_dependency=lambda request: sessions.name(request.cookies.get(COOKIE)),
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        show_error=False,
        max_file_size="1kb",
    )


class Gate:
    """ASGI middleware: refuses foreign requests and uploads, adds the security headers."""

    def __init__(self, application: Application, loopback_only: bool) -> None:
        self._application = application
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                kept = [h for h in message.get("headers", []) if h[0] not in SECURITY_HEADERS]
                message["headers"] = [*kept, *SECURITY_HEADERS.items()]
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send_with_headers)
            return
        await self._application(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        allowed = request_allowed(
            scope["method"],
            headers.get(b"host", ""),
            headers.get(b"origin"),
            loopback_only=self._loopback_only,
        )
        if not allowed:
            return JSONResponse({"detail": "requests from other sites are refused"}, 403)
        if scope["path"].rstrip("/").endswith("/upload"):
            return JSONResponse({"detail": "there is nothing to upload here"}, 404)
        return None


def _add_sign_in(site: FastAPI, sessions: Sessions) -> None:
    @site.get("/healthz")
    def healthz() -> dict[str, str]:
        import gradio

        return {"status": "ok", "gradio": gradio.__version__}

    @site.get("/session")
    def session(request: Request) -> dict[str, str | None]:
        return {"name": sessions.name(request.cookies.get(COOKIE))}

    @site.get("/ranking_page.css")
    def style_sheet() -> Response:
        return FileResponse(STATIC / "ranking_page.css", headers={"cache-control": "no-cache"})

    @site.get("/")
    def root(request: Request) -> Response:
        if sessions.name(request.cookies.get(COOKIE)):
            return RedirectResponse(f"{PAGE_PATH}/", 303)
        token = request.query_params.get("token", "")
        query = f"?{urlencode({'token': token})}" if token else ""
        return RedirectResponse(f"/sign-in{query}", 303)

    @site.get("/sign-in")
    def sign_in_form(request: Request) -> Response:
        return _sign_in_page(sessions, token=request.query_params.get("token", ""))

    @site.post("/sign-in")
    async def sign_in(request: Request) -> Response:
        form = await _read_form(request)
        name, token = form.get("name", "").strip(), form.get("token", "")
        if not sessions.token_fits(token):
            return _sign_in_page(
                sessions,
                name=name,
                problem="The access token is not right; it is part of the address you were given.",
            )
        try:
            check_labeler_name(name, panel="")
        except LabelError as error:
            return _sign_in_page(sessions, name=name, token=token, problem=str(error))
        answer = RedirectResponse(f"{PAGE_PATH}/", 303)
        answer.set_cookie(
            COOKIE,
            sessions.issue(name),
            max_age=SESSION_S,
            httponly=True,
            samesite="lax",
            secure=request.url.scheme == "https",
        )
        return answer

    @site.post("/sign-out")
    def sign_out() -> Response:
        answer = RedirectResponse("/sign-in", 303)
        answer.delete_cookie(COOKIE)
        return answer


async def _read_form(request: Request) -> dict[str, str]:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            return {}
    fields = parse_qs(body.decode("utf-8", "replace"))
    return {name: values[0] for name, values in fields.items()}


def _sign_in_page(
    sessions: Sessions, *, name: str = "", token: str = "", problem: str = ""
) -> Response:
    template = Template((STATIC / "sign_in.html").read_text("utf-8"))
    token_field = (
        '<label>Access token<input name="token" required autocomplete="off" '
        f'value="{html.escape(token)}"></label>'
    )
    page = template.substitute(
        problem=f'<p class="problem" role="alert">{html.escape(problem)}</p>' if problem else "",
        name=html.escape(name[:MAX_NAME_CHARACTERS]),
        token_field=token_field if sessions.token_needed else "",
    )
    return HTMLResponse(page, 400 if problem else 200)
