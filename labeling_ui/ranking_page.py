"""The page on which a person ranks: one Gradio component, and what it may ask of the server.

The page builds all its DOM in `static/ranking/*.js`, node by node, and talks through the server
functions below. Each answers with an envelope `{"ok": true, "data": ...}` or `{"ok": false,
"code": ..., "message": ...}`, because an exception would reach the page as silence. Identity
comes from the signed cookie of each call, never from what the page says.
"""

import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
from pydantic import ValidationError

from alignment.errors import LabelError, StoreError
from labeling_ui import drafts, guidelines
from labeling_ui.cards import SKIP_REASONS, Card
from labeling_ui.identity import Identity
from labeling_ui.judgement import UNSAFE_CATEGORIES, Effort, Judgement
from labeling_ui.ranking_requests import (
    AcceptRequest,
    AliveRequest,
    CardRequest,
    DraftRequest,
    NextRequest,
    PageRequest,
    SkipRequest,
    SubmitRequest,
    read_request,
)
from labeling_ui.rich_text import rich_text
from labeling_ui.store import LabelStore
from labeling_ui.visible_text import visible_text

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("tools", "words", "drafts", "card", "lane", "ranking", "talk", "keys")
MAX_HISTORY = 30
Envelope = dict[str, Any]
Request = TypeVar("Request", bound=PageRequest)


def ranking_page(store: LabelStore, round_id: str | None, identity: Identity) -> gr.Blocks:
    """The Gradio page for one round, or for the newest open one where `round_id` is None."""

    def answered(work: Callable[[LabelStore, str, Request], Any], form: type[Request]) -> Any:
        def answer(data: Any, request: gr.Request) -> Envelope:
            return _answer(
                identity, request, lambda name: work(store, name, read_request(form, data))
            )

        return answer

    def rank_next(data: Any, request: gr.Request) -> Envelope:
        return _answer(
            identity,
            request,
            lambda name: _next_card(store, round_id, name, read_request(NextRequest, data).beside),
        )

    def rank_history(data: Any, request: gr.Request) -> Envelope:
        return _answer(identity, request, lambda name: _history(store, round_id, name))

    # The names need a prefix of their own: `submit` would shadow an event of gr.HTML.
    functions = {
        "rank_submit": answered(_submit, SubmitRequest),
        "rank_skip": answered(_skip, SkipRequest),
        "rank_reopen": answered(_reopen, CardRequest),
        "rank_alive": answered(_alive, AliveRequest),
        "rank_accept": answered(_accept, AcceptRequest),
        "rank_draft": answered(_keep_draft, DraftRequest),
    }
    for name, function in functions.items():
        function.__name__ = name
    with gr.Blocks(title="Rank responses · alignflow", analytics_enabled=False) as page:
        gr.HTML(
            html_template="<div class='ranking-host'></div>",
            js_on_load="\n".join(
                (STATIC / "ranking" / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS
            ),
            server_functions=[rank_next, rank_history, *functions.values()],
            apply_default_css=False,
            elem_id="ranking",
        )
    return page


def _answer(identity: Identity, request: Any, work: Callable[[str], Any]) -> Envelope:
    try:
        person = identity.person(request.cookies)
        if person is None:
            return _refusal("signed_out", "You are signed out. Sign in again to go on.")
        return {"ok": True, "data": work(person.name)}
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


def _submit(store: LabelStore, name: str, sent: SubmitRequest) -> Envelope:
    receipt = store.submit(
        sent.assignment_id,
        name,
        submission_id=sent.submission_id,
        judgement=Judgement(
            tiers=tuple(sent.tiers),
            gaps=tuple(sent.gaps),
            bar=sent.bar,
            flags=tuple(sent.flags),
            scores=tuple(sent.scores),
            rationale=sent.rationale,
        ),
        effort=Effort(
            active_seconds=sent.active_seconds,
            wall_seconds=sent.wall_seconds,
            moves=sent.moves,
        ),
        revise=sent.revise,
    )
    return {
        "submission_id": receipt.submission_id,
        "counted": receipt.counted,
        "round_complete": receipt.round_complete,
    }


def _skip(store: LabelStore, name: str, sent: SkipRequest) -> Envelope:
    store.skip(sent.assignment_id, name, reason=sent.reason)
    return {}


def _reopen(store: LabelStore, name: str, sent: CardRequest) -> Envelope:
    found = store.reopen(sent.assignment_id, name)
    judgements = [
        {
            "tiers": said.tiers,
            "gaps": said.gaps,
            "bar": said.bar,
            "flags": said.flags,
            "scores": said.scores,
            "rationale": said.rationale,
        }
        for said in found.judgements
    ]
    return {"judgements": judgements} | _card_and_questions(store, name, found.round_id, found.card)


def _history(store: LabelStore, round_id: str | None, name: str) -> Envelope:
    wanted = round_id or _newest_round_for_people(store)
    finished = store.finished(wanted, name, limit=MAX_HISTORY) if wanted else []
    return {
        "finished": [
            {
                "assignment_id": card.assignment_id,
                "finished_ms": card.finished_ms,
                "skipped": card.state == "skipped",
                "excerpt": visible_text(card.excerpt),
                "revisions": card.revisions,
            }
            for card in finished
        ]
    }


def _alive(store: LabelStore, name: str, sent: AliveRequest) -> Envelope:
    return {"held": store.keep_alive(sent.assignment_ids, name)}


def _accept(store: LabelStore, name: str, sent: AcceptRequest) -> Envelope:
    guidelines.accept(store, name, sent.version)
    return {}


def _keep_draft(store: LabelStore, name: str, sent: DraftRequest) -> Envelope:
    content = None if sent.draft is None else sent.draft.model_dump()
    drafts.save(store, sent.assignment_id, name, content)
    return {}


def _next_card(store: LabelStore, round_id: str | None, name: str, beside: str | None) -> Envelope:
    wanted = round_id or _newest_round_for_people(store)
    if wanted is None:
        return {"card": None, "labeler": name, "state": "no_round"}
    unread = guidelines.to_accept(store, name)
    if unread is not None:
        texts = {"en": rich_text(unread.text_en), "zh": rich_text(unread.text_zh)}
        told = {"version": unread.version, "texts": texts, "labeler": name}
        return {"card": None, "state": "guidelines"} | told
    card = store.claim(wanted, name, beside=beside)
    mine = store.labeler_progress(wanted, name)
    counted = {"labeler": name, "done": mine.done, "left": mine.left}
    if card is not None:
        return counted | _card_and_questions(store, name, wanted, card)
    status = store.progress(wanted)
    finished = status.complete or status.state in ("frozen", "closed")
    paused = status.state == "paused"
    return counted | {
        "card": None,
        "state": "finished" if finished else "paused" if paused else "waiting",
        "rankings_done": status.rankings_done,
        "rankings_wanted": status.rankings_wanted,
    }


def _card_and_questions(store: LabelStore, name: str, round_id: str, card: Card) -> Envelope:
    settings = store.settings(round_id)
    return {
        "card": card_payload(card),
        "draft": drafts.find(store, card.assignment_id, name),
        "labeler": name,
        "skip_reasons": [[code, text] for code, text in SKIP_REASONS.items()],
        "categories": UNSAFE_CATEGORIES,
        "asked": {
            "strength": settings.strength,
            "rationale": settings.rationale,
            "criteria": settings.criteria,
        },
    }


def _newest_round_for_people(store: LabelStore) -> str | None:
    rounds = [r for r in store.rounds() if not r.panel]
    open_rounds = [r for r in rounds if r.state in ("open", "paused") and not r.complete]
    return next((r.round_id for r in open_rounds or rounds), None)


def card_payload(card: Card) -> Envelope:
    """All that the browser learns of a card: an opaque id and texts with nothing hidden."""
    return {
        "assignment_id": card.assignment_id,
        "language": card.language,
        "messages": [
            {"role": m.role, "text": visible_text(m.content), "tree": rich_text(m.content)}
            for m in card.messages
        ],
        "responses": [
            {
                "label": r.label,
                "text": visible_text(r.text),
                "tree": rich_text(r.text),
                "cut_off": r.cut_off,
            }
            for r in card.responses
        ],
    }
