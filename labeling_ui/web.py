"""The web application: sign-in, ranking at /rank, the lead's page at /lead, behind one gate."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response

from labeling_ui.accounts import Person
from labeling_ui.export_route import add_export
from labeling_ui.gate import LEAD_PAGE, RANKING_PAGE, Gate
from labeling_ui.identity import Identity
from labeling_ui.lead_page import I18N, lead_page
from labeling_ui.ranking_page import ranking_page
from labeling_ui.sessions import Sessions
from labeling_ui.sign_in import add_sign_in
from labeling_ui.store import LabelStore

STATIC = Path(__file__).parent / "static"


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
    panel = store.progress(round_id).panel if round_id else ""
    add_sign_in(site, store, identity, accounts_only=accounts_only, panel=panel)
    add_export(site, store, identity)

    @site.get("/ranking_page.css")
    def style_sheet() -> Response:
        return FileResponse(STATIC / "ranking_page.css", headers={"cache-control": "no-cache"})

    site.add_middleware(Gate, identity=identity, loopback_only=loopback_only)
    lead = lead_page(store, identity, artifacts)
    _mount(site, lead, LEAD_PAGE, lambda request: identity.lead(request.cookies))
    ranking = ranking_page(store, round_id, identity)
    _mount(site, ranking, RANKING_PAGE, lambda request: identity.person(request.cookies))
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
            body_text_color_subdued="*neutral_600",
            input_placeholder_color="*neutral_600",
            block_label_text_color="*neutral_600",
            block_title_text_color="*neutral_600",
            slider_color="*primary_700",
        ),
        css=(STATIC / "lead_page.css").read_text(encoding="utf-8"),
        i18n=I18N,
    )
