"""The web application: sign-in, security headers, ranking at /rank, the lead's page at /lead.

Every request passes one gate: it must come from a page of this server, and every answer leaves
with a content security policy that lets the browser talk to nobody else.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse, JSONResponse, Response

from labeling_ui.accounts import Person
from labeling_ui.export_route import add_export
from labeling_ui.identity import Identity
from labeling_ui.lead_page import I18N, lead_page
from labeling_ui.ranking_page import ranking_page
from labeling_ui.sessions import Sessions, request_allowed
from labeling_ui.sign_in import add_sign_in
from labeling_ui.store import LabelStore

STATIC = Path(__file__).parent / "static"

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
    store: LabelStore,
    *,
    round_id: str | None,
    token: str | None,
    loopback_only: bool,
    accounts_only: bool = False,
    artifacts: Path | None = None,
) -> FastAPI:
    """The whole site for one label store; `token` is what signing in takes besides a name.

    With `accounts_only` nobody signs in without a password. Under `artifacts` a lead finds
    candidates for new rounds.
    """
    identity = Identity(store, Sessions(store.session_secret(), token))
    site = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_sign_in(site, store, identity, accounts_only=accounts_only)
    add_export(site, store, identity)

    @site.get("/ranking_page.css")
    def style_sheet() -> Response:
        return FileResponse(STATIC / "ranking_page.css", headers={"cache-control": "no-cache"})

    site.add_middleware(Gate, loopback_only=loopback_only)
    lead = lead_page(store, identity, artifacts)
    _mount(site, lead, "/lead", lambda request: identity.lead(request.cookies))
    ranking = ranking_page(store, round_id, identity)
    _mount(site, ranking, "/rank", lambda request: identity.person(request.cookies))
    return site


def _mount(site: FastAPI, page: Any, path: str, who: Callable[[Any], Person | None]) -> None:
    import gradio

    def signed_in(request: Any) -> str | None:
        person = who(request)
        return person.name if person is not None else None

    # Gradio's own shade of blue is too pale for white words on it.
    fonts = [
        "system-ui",
        "-apple-system",
        "Segoe UI",
        "Noto Sans",
        "Noto Sans CJK SC",
        "sans-serif",
    ]
    gradio.mount_gradio_app(
        site,
        page,
        path=path,
        auth_dependency=signed_in,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        show_error=False,
        max_file_size="1kb",
        theme=gradio.themes.Default(primary_hue="blue", neutral_hue="slate", font=fonts).set(
            button_primary_background_fill="*primary_700",
            button_primary_background_fill_hover="*primary_800",
            block_label_text_color="*neutral_600",
            block_title_text_color="*neutral_600",
            slider_color="*primary_700",
        ),
        css=(STATIC / "lead_page.css").read_text(encoding="utf-8"),
        i18n=I18N,
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
