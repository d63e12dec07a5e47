"""What the lead's page shows of the chosen round, and what it does to it."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from labeling_ui import lead
from labeling_ui.cards import RoundStatus
from labeling_ui.lead_page.dispute_view import disputes_html
from labeling_ui.lead_page.quality_view import labelers_html
from labeling_ui.lead_page.round_view import (
    export_html,
    progress_html,
    summary_html,
    title_html,
)
from labeling_ui.lead_page.wiring import Visitor
from labeling_ui.opinions import read_opinions
from labeling_ui.quality import RoundQuality, round_quality
from labeling_ui.store import LabelStore

STATES: dict[lead.RoundState, str] = {
    "open": "Open",
    "paused": "Pause",
    "closed": "Close to new cards",
}


class RoundDesk:
    """Handlers, each for a lead who has been checked: `work(visitor, *values)`."""

    def __init__(self, store: LabelStore) -> None:
        self._store = store
        self._known: dict[str, tuple[tuple[int, int], RoundQuality]] = {}

    def title(self, visitor: Visitor) -> str:
        """The head of the page."""
        return title_html(visitor.name, visitor.t)

    def rounds(self, visitor: Visitor, current: str | None) -> Any:
        """The list of rounds; the newest is chosen where none is, or a new one appeared."""
        statuses = self._store.rounds()
        choices = [(_round_name(status, visitor), status.round_id) for status in statuses]
        ids = [status.round_id for status in statuses]
        value = current if current in ids else ids[0] if ids else None
        return gr.Dropdown(choices=choices, value=value)

    def newest(self, visitor: Visitor) -> Any:
        """The list of rounds, with the newest chosen."""
        return self.rounds(visitor, None)

    def show(self, visitor: Visitor, round_id: str | None) -> list[Any]:
        """All that is told of a round: figures, progress, labelers, disputes, export."""
        if not round_id:
            return [f"<p class='empty'>{visitor.t('No round yet.')}</p>", "", "", "", ""]
        quality = self._quality(round_id)
        return [
            *self.progress(visitor, round_id),
            labelers_html(quality, visitor.t),
            disputes_html(self._store, round_id, quality.disputes, visitor.t),
            export_html(round_id, quality, visitor.t),
        ]

    def progress(self, visitor: Visitor, round_id: str | None) -> list[Any]:
        """Figures and progress alone, for a page that stays open."""
        if not round_id:
            return [gr.skip(), gr.skip()]
        quality = self._quality(round_id)
        pace = lead.round_pace(self._store, round_id)
        events = lead.round_events(self._store, round_id)
        status = self._store.progress(round_id)
        return [
            summary_html(status, pace, quality.alpha, quality.agreement, visitor.t),
            progress_html(pace, events, visitor.t),
        ]

    def _quality(self, round_id: str) -> RoundQuality:
        """The statistics, computed once for the labels there are: they take a while."""
        stamp = lead.labels_stamp(self._store, round_id)
        known = self._known.get(round_id)
        if known is None or known[0] != stamp:
            quality = round_quality(read_opinions(self._store, round_id))
            self._known = {round_id: (stamp, quality)}
            return quality
        return known[1]

    def mover(self, state: lead.RoundState) -> Callable[..., Any]:
        """Work that brings a round into a state."""

        def move(visitor: Visitor, round_id: str | None) -> list[Any]:
            lead.set_round_state(self._store, round_id or "", state, actor=visitor.name)
            return self.progress(visitor, round_id)

        return move

    def freeze(self, visitor: Visitor, round_id: str | None, incomplete: bool) -> list[Any]:
        """Freezes a round; without one the lead thought better of it."""
        if not round_id:
            return [gr.skip()] * 5
        lead.freeze_round(
            self._store, round_id, allow_incomplete=bool(incomplete), actor=visitor.name
        )
        return self.show(visitor, round_id)


def _round_name(status: RoundStatus, visitor: Visitor) -> str:
    t = visitor.t
    return f"{status.name or t('unnamed round')} · {t(status.state)} · {status.round_id[:8]}"
