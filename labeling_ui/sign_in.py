"""Signing in and out: name and password, an access token where one is set, invitations."""

import html
import math
from pathlib import Path
from string import Template
from urllib.parse import parse_qs, urlencode

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from alignment.errors import LabelError
from labeling_ui import accounts
from labeling_ui.accounts import Person, Throttle
from labeling_ui.identity import Identity
from labeling_ui.labelers import MAX_NAME_CHARACTERS
from labeling_ui.sessions import COOKIE, SESSION_S
from labeling_ui.store import LabelStore

STATIC = Path(__file__).parent / "static"
MAX_FORM_BYTES = 4096
RANKING_PATH = "/rank/"
LEAD_PATH = "/lead/"


def add_sign_in(
    site: FastAPI, store: LabelStore, identity: Identity, *, accounts_only: bool, panel: str = ""
) -> None:
    """The routes `/`, `/session`, `/sign-in`, `/sign-out`, `/join`, `/enter` and `/healthz`."""
    door = _Door(store, identity, accounts_only, panel)
    for path, method, route in (
        ("/", "GET", door.root),
        ("/session", "GET", door.session),
        ("/sign-in", "GET", door.sign_in_form),
        ("/sign-in", "POST", door.sign_in),
        ("/sign-out", "POST", door.sign_out),
        ("/join", "GET", door.join_form),
        ("/join", "POST", door.join),
        ("/enter", "GET", door.enter),
        ("/healthz", "GET", door.healthz),
        ("/health", "GET", door.healthz),
    ):
        site.add_api_route(path, route, methods=[method], response_model=None)


class _Door:
    """The routes, over what they share: whom to ask, and who failed too often."""

    def __init__(
        self, store: LabelStore, identity: Identity, accounts_only: bool, panel: str
    ) -> None:
        self._store, self._identity = store, identity
        self._accounts_only, self._panel = accounts_only, panel
        self._throttle = Throttle()

    def healthz(self) -> Response:
        import gradio

        return JSONResponse({"status": "ok", "gradio": gradio.__version__})

    def session(self, request: Request) -> Response:
        person = self._identity.person(request.cookies)
        return JSONResponse({"name": person.name if person else None})

    def root(self, request: Request) -> Response:
        person = self._identity.person(request.cookies)
        if person is not None:
            return RedirectResponse(_home(person), 303)
        token = request.query_params.get("token", "")
        query = f"?{urlencode({'token': token})}" if token else ""
        return RedirectResponse(f"/sign-in{query}", 303)

    def sign_in_form(self, request: Request) -> Response:
        return self._form(request, token=request.query_params.get("token", ""))

    async def sign_in(self, request: Request) -> Response:
        return await run_in_threadpool(self._check, request, await _read_form(request))

    def _check(self, request: Request, form: dict[str, str]) -> Response:
        name, token = form.get("name", "").strip(), form.get("token", "")
        keys = (f"name {name}", f"address {request.client.host if request.client else ''}")
        wait_s = self._throttle.wait_s(*keys)
        if wait_s > 0:
            problem = f"Too many attempts. Try again in {math.ceil(wait_s)} seconds."
            refused = self._form(request, name=name, token=token, problem=problem, status=429)
            refused.headers["retry-after"] = str(math.ceil(wait_s))
            return refused
        if not self._identity.sessions.token_fits(token):
            self._throttle.failed(keys[1])
            problem = "The access token is not right; it is part of the address you were given."
            return self._form(request, name=name, problem=problem)
        try:
            person = accounts.sign_in(
                self._store,
                name,
                form.get("password", ""),
                accounts_only=self._accounts_only,
                panel=self._panel,
            )
        except LabelError as error:
            return self._form(request, name=name, token=token, problem=str(error))
        if person is None:
            self._throttle.failed(*keys)
            problem = "This name and password do not belong together."
            return self._form(request, name=name, token=token, problem=problem)
        self._throttle.succeeded(*keys)
        return _signed_in(request, self._identity, person)

    def join_form(self, request: Request) -> Response:
        key = request.query_params.get("key", "")
        name = accounts.invited_name(self._store, key)
        if name is None:
            problem = "This invitation was used before or is too old; ask for a new one."
            return self._form(request, problem=problem, status=410)
        return _join_page(request, key, name)

    async def join(self, request: Request) -> Response:
        form = await _read_form(request)
        key, password = form.get("key", ""), form.get("password", "")
        try:
            person = await run_in_threadpool(accounts.join, self._store, key, password)
        except LabelError as error:
            return _join_page(request, key, form.get("name", ""), problem=str(error))
        return _signed_in(request, self._identity, person)

    def enter(self, request: Request) -> Response:
        """The link that the command prints for whoever runs it; it works once."""
        try:
            person = accounts.join(self._store, request.query_params.get("key", ""), None)
        except LabelError as error:
            return self._form(request, problem=str(error), status=410)
        return _signed_in(request, self._identity, person)

    def sign_out(self) -> Response:
        answer = RedirectResponse("/sign-in", 303)
        answer.delete_cookie(COOKIE)
        return answer

    def _form(
        self,
        request: Request,
        *,
        name: str = "",
        token: str = "",
        problem: str = "",
        status: int = 400,
    ) -> Response:
        token_shown = token if self._identity.sessions.token_needed else None
        page = _sign_in_page(request, self._accounts_only, name, token_shown, problem)
        return HTMLResponse(page, status if problem else 200)


def _home(person: Person) -> str:
    return LEAD_PATH if person.role == "lead" else RANKING_PATH


def _signed_in(request: Request, identity: Identity, person: Person) -> Response:
    answer = RedirectResponse(_home(person), 303)
    answer.set_cookie(
        COOKIE,
        identity.cookie_for(person),
        max_age=SESSION_S,
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
    )
    return answer


async def _read_form(request: Request) -> dict[str, str]:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            return {}
    fields = parse_qs(body.decode("utf-8", "replace"))
    return {name: values[0] for name, values in fields.items()}


_ZH = {
    "Rank responses": "为回复排序",
    "You will read a prompt and several responses to it, and say which you find better.": (
        "你将阅读一个提示和若干回复，并说明你认为哪些更好。"
    ),
    "Your name": "你的名字",
    "Any name you will use again. It stays in the label database; exports carry a number "
    "instead.": ("任何你会再次使用的名字。它只留在标注数据库中；导出的数据只带编号。"),
    "Password": "密码",
    "Only if your name has one.": "仅当你的名字设有密码时填写。",
    "Access token": "访问令牌",
    "Start": "开始",
    "Choose a password": "设置密码",
    "At least 8 characters. This link works once.": "至少 8 个字符。此链接只能使用一次。",
    "Welcome": "欢迎",
}


def _words(request: Request) -> tuple[str, dict[str, str]]:
    chinese = request.headers.get("accept-language", "").lower().startswith("zh")
    return ("zh", _ZH) if chinese else ("en", {})


def _field(label: str, note: str, attributes: str) -> str:
    hint = f"<span>{html.escape(note)}</span>" if note else ""
    return f"<label>{html.escape(label)}{hint}<input {attributes}></label>"


def _page(
    request: Request, title: str, lead: str, action: str, fields: list[str], problem: str
) -> str:
    language, words = _words(request)
    template = Template((STATIC / "sign_in.html").read_text("utf-8"))
    return template.substitute(
        language=language,
        title=html.escape(words.get(title, title)),
        lead=html.escape(words.get(lead, lead)),
        action=action,
        fields="\n".join(fields),
        start=html.escape(words.get("Start", "Start")),
        problem=f'<p class="problem" role="alert">{html.escape(problem)}</p>' if problem else "",
    )


def _sign_in_page(
    request: Request, accounts_only: bool, name: str, token: str | None, problem: str
) -> str:
    _, words = _words(request)
    notes = (
        "Any name you will use again. It stays in the label database; exports carry a number "
        "instead.",
        "Only if your name has one.",
    )
    name_note, password_note = ("", "") if accounts_only else notes
    shown = html.escape(name[:MAX_NAME_CHARACTERS])
    needed = "required " if accounts_only else ""
    fields = [
        _field(
            words.get("Your name", "Your name"),
            words.get(name_note, name_note),
            'name="name" required maxlength="60" autocomplete="username" autofocus '
            f'value="{shown}"',
        ),
        _field(
            words.get("Password", "Password"),
            words.get(password_note, password_note),
            f'name="password" type="password" {needed}maxlength="200" '
            'autocomplete="current-password"',
        ),
    ]
    if token is not None:
        attributes = f'name="token" required autocomplete="off" value="{html.escape(token)}"'
        fields.append(_field(words.get("Access token", "Access token"), "", attributes))
    lead = "You will read a prompt and several responses to it, and say which you find better."
    return _page(request, "Rank responses", lead, "/sign-in", fields, problem)


def _join_page(request: Request, key: str, name: str, *, problem: str = "") -> Response:
    _, words = _words(request)
    note = "At least 8 characters. This link works once."
    shown = html.escape(name[:MAX_NAME_CHARACTERS])
    fields = [
        f'<input type="hidden" name="key" value="{html.escape(key)}">',
        _field(
            words.get("Your name", "Your name"),
            "",
            f'name="name" readonly autocomplete="username" value="{shown}"',
        ),
        _field(
            words.get("Choose a password", "Choose a password"),
            words.get(note, note),
            'name="password" type="password" required minlength="8" maxlength="200" autofocus '
            'autocomplete="new-password"',
        ),
    ]
    page = _page(request, "Welcome", "", "/join", fields, problem)
    return HTMLResponse(page, 400 if problem else 200)
