"""The page on which a person ranks: one Gradio component, and what it may ask of the server.

The page builds all its DOM in `static/ranking_page.js`, from text nodes only, and talks through
three server functions. Each answers with an envelope `{"ok": true, "data": ...}` or `{"ok":
false, "code": ..., "message": ...}`, because an exception would reach the page as silence.
Identity comes from the signed cookie of each call, never from what the page says.
"""

import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import gradio as gr
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alignment.errors import LabelError, StoreError
from labeling_ui.cards import SKIP_REASONS, Card
from labeling_ui.sessions import COOKIE, Sessions
from labeling_ui.store import LabelStore
from labeling_ui.visible_text import visible_text

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
Envelope = dict[str, Any]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class SubmitRequest(_Request):
    """What the page sends when a labeler submits."""

    assignment_id: Annotated[str, Field(max_length=80)]
    submission_id: Annotated[str, Field(max_length=80)]
    tiers: Annotated[list[int], Field(max_length=9)]
    active_seconds: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]


class SkipRequest(_Request):
    """What the page sends when a labeler skips."""

    assignment_id: Annotated[str, Field(max_length=80)]
    reason: Annotated[str, Field(max_length=40)]


def ranking_page(store: LabelStore, round_id: str | None, sessions: Sessions) -> gr.Blocks:
    """The Gradio page for one round, or for the newest open one where `round_id` is None."""

    # The names need a prefix of their own: `submit` would shadow an event of gr.HTML.
    def rank_next(data: Any, request: gr.Request) -> Envelope:
        return _answer(sessions, request, lambda name: _next_card(store, round_id, name))

    def rank_submit(data: Any, request: gr.Request) -> Envelope:
        return _answer(sessions, request, lambda name: _submit(store, data, name))

    def rank_skip(data: Any, request: gr.Request) -> Envelope:
        return _answer(sessions, request, lambda name: _skip(store, data, name))

    with gr.Blocks(title="Rank responses · alignflow", analytics_enabled=False) as page:
        gr.HTML(
            html_template="<div class='ranking-host'></div>",
            js_on_load=(STATIC / "ranking_page.js").read_text(encoding="utf-8"),
            server_functions=[rank_next, rank_submit, rank_skip],
            apply_default_css=False,
            elem_id="ranking",
        )
    return page


def _answer(sessions: Sessions, request: Any, work: Callable[[str], Any]) -> Envelope:
    name = sessions.name(request.cookies.get(COOKIE))
    if name is None:
        return _refusal("signed_out", "You are signed out. Sign in again to go on.")
    try:
        return {"ok": True, "data": work(name)}
    except LabelError as error:
        return _refusal("refused", str(error))
    except ValidationError as error:
        logger.warning("request of another form than the page sends: %s", error)
        return _refusal("invalid", "This page is out of date or damaged. Reload it.")
    except StoreError as error:
        return _refusal("unavailable", f"The label database does not answer: {error}")
    except Exception:  # the boundary to the browser: anything else must not end in silence there
        reference = secrets.token_hex(4)
        logger.exception("request failed, reference %s", reference)
        return _refusal("unavailable", f"The server failed (reference {reference} in its log).")


def _refusal(code: str, message: str) -> Envelope:
    return {"ok": False, "code": code, "message": message}


def _submit(store: LabelStore, data: Any, name: str) -> Envelope:
    sent = SubmitRequest.model_validate(data)
    receipt = store.submit(
        sent.assignment_id,
        name,
        submission_id=sent.submission_id,
        tiers=sent.tiers,
        active_seconds=sent.active_seconds,
    )
    return {"submission_id": receipt.submission_id, "counted": receipt.counted}


def _skip(store: LabelStore, data: Any, name: str) -> Envelope:
    sent = SkipRequest.model_validate(data)
    store.skip(sent.assignment_id, name, reason=sent.reason)
    return {}


def _next_card(store: LabelStore, round_id: str | None, name: str) -> Envelope:
    wanted = round_id or _newest_round_for_people(store)
    if wanted is None:
        return {"card": None, "labeler": name, "state": "no_round"}
    card = store.claim(wanted, name)
    mine = store.labeler_progress(wanted, name)
    if card is not None:
        return {
            "card": card_payload(card),
            "labeler": name,
            "number": mine.done + 1,
            "total": mine.done + mine.left,
            "skip_reasons": [[code, text] for code, text in SKIP_REASONS.items()],
        }
    status = store.progress(wanted)
    finished = status.complete or status.frozen_digest is not None
    return {
        "card": None,
        "labeler": name,
        "state": "finished" if finished else "waiting",
        "done": mine.done,
        "rankings_done": status.rankings_done,
        "rankings_wanted": status.rankings_wanted,
    }


def _newest_round_for_people(store: LabelStore) -> str | None:
    rounds = [r for r in store.rounds() if not r.panel]
    open_rounds = [r for r in rounds if r.frozen_digest is None and not r.complete]
    return next((r.round_id for r in open_rounds or rounds), None)


def card_payload(card: Card) -> Envelope:
    """All that the browser learns of a card: an opaque id and texts with nothing hidden."""
    return {
        "assignment_id": card.assignment_id,
        "language": card.language,
        "messages": [
            {"role": message.role, "text": visible_text(message.content)}
            for message in card.messages
        ],
        "responses": [
            {"label": r.label, "text": visible_text(r.text), "cut_off": r.cut_off}
            for r in card.responses
        ],
    }
