"""The lead's page: rounds and how they go, labelers, disputes, guidelines, audit log.

Mounted at /lead, where the sign-in of a lead is needed to load anything. That alone would not
do: each handler asks again who calls, because a handler can be reached without the page.
"""

import html
import inspect
from collections.abc import Callable
from typing import Any

import gradio as gr
import pandas as pd

from alignment.errors import AlignmentError
from alignment.statistics.bootstrap import Interval
from labeling_ui import accounts, audit, guidelines, lead
from labeling_ui.accounts import Person
from labeling_ui.audit import AuditEntry
from labeling_ui.identity import Identity
from labeling_ui.opinions import read_opinions
from labeling_ui.quality import LabelerQuality, RoundQuality, round_quality
from labeling_ui.store import LabelStore

LABELER_COLUMNS = (
    "labeler",
    "rankings",
    "seconds",
    "ties",
    "agreement with others",
    "gold and attention passed",
    "repeats alike",
    "first shown on top",
    "expected",
    "longer preferred",
)
DISPUTE_COLUMNS = ("prompt", "labelers", "disagreement", "rankings (responses as published)")
PEOPLE_COLUMNS = ("name", "pseudonym", "role", "admitted", "has a password")
AUDIT_COLUMNS = ("when (UTC)", "who", "what", "on", "detail")
MAX_DISPUTES = 100


def lead_page(store: LabelStore, identity: Identity) -> gr.Blocks:
    """The Gradio page over one label store."""
    with gr.Blocks(title="Lead · alignflow", analytics_enabled=False) as page:
        gr.HTML("<h1>Ranking rounds</h1>")
        with gr.Row():
            chosen = gr.Dropdown([], label="Round", scale=3, allow_custom_value=False)
            refresh = gr.Button("Refresh", scale=0)
        summary = gr.HTML()
        with gr.Row():
            movers = {state: gr.Button(words) for state, words in _STATES.items()}
            incomplete = gr.Checkbox(label="freeze although rankings are missing", scale=0)
            freeze = gr.Button("Freeze for good", variant="stop")
        shown = [summary, *_round_tabs()]
        with gr.Tab("People"):
            people = _table(PEOPLE_COLUMNS)
            with gr.Row():
                name = gr.Textbox(label="Name", max_lines=1)
                role = gr.Dropdown(list(accounts.ROLES), value="labeler", label="Role")
                invite = gr.Button("Make an invitation")
                suspend, admit = gr.Button("Suspend"), gr.Button("Admit again")
            link = gr.Textbox(label="Invitation (works once, for a week)", interactive=False)
        with gr.Tab("Guidelines"):
            texts = [gr.Textbox(label=f"{t} (Markdown)", lines=10) for t in ("English", "中文")]
            publish = gr.Button("Publish as a new version")
        with gr.Tab("Audit log"):
            office = [people, _table(AUDIT_COLUMNS)]

        desk = _Desk(store)
        on = _Wiring(identity)
        opened = on(page.load, desk.rounds, [chosen], [chosen])
        on(opened.then, desk.show, [chosen], shown)
        on(page.load, desk.office, [], office)
        on(page.load, desk.texts, [], texts)
        on(chosen.change, desk.show, [chosen], shown)
        renewed = on(refresh.click, desk.rounds, [chosen], [chosen])
        on(renewed.then, desk.show, [chosen], shown)
        on(renewed.then, desk.office, [], office)
        for state, button in movers.items():
            moved = on(button.click, desk.mover(state), [chosen], shown)
            on(moved.then, desk.office, [], office)
        frozen = on(freeze.click, desk.freeze, [chosen, incomplete], shown)
        on(frozen.then, desk.office, [], office)
        made = on(invite.click, desk.invite, [name, role], [link])
        on(made.then, desk.office, [], office)
        on(suspend.click, desk.admission(False), [name], office)
        on(admit.click, desk.admission(True), [name], office)
        published = on(publish.click, desk.publish, texts, office)
        on(published.then, desk.texts, [], texts)
    return page


def _round_tabs() -> list[Any]:
    """What shows a round besides its summary, in the order of `_Desk.show`."""
    with gr.Tab("Progress"), gr.Row():
        by_hour = _bars("hour", "rankings", "Rankings by hour of work")
        by_labeler = _bars("labeler", "rankings", "Rankings by labeler")
    with gr.Tab("Labelers"):
        gr.HTML(f"<p>{_LABELER_NOTE}</p>")
        labelers = _table(LABELER_COLUMNS)
        agreement = _bars("labeler", "agreement", "Agreement with others")
    with gr.Tab("Disputes"):
        disputes = _table(DISPUTE_COLUMNS)
    return [by_hour, by_labeler, labelers, agreement, disputes]


def _bars(x: str, y: str, title: str) -> gr.BarPlot:
    return gr.BarPlot(x=x, y=y, title=title, y_lim=[0, None])


class _Wiring:
    """Binds work to events so that it is refused to anyone but a lead."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    def __call__(
        self, event: Callable[..., Any], work: Callable[..., Any], inputs: Any, outputs: Any
    ) -> Any:
        """`work(person, *inputs)` at the event; what it refuses is told on the page."""

        def handler(request: gr.Request, *values: Any) -> Any:
            # Queued events carry Gradio's own request, with the real one inside.
            person = self._identity.lead(getattr(request, "request", request).cookies)
            if person is None:
                raise gr.Error("This needs a lead's sign-in.", print_exception=False)
            try:
                return work(person, *values)
            except AlignmentError as error:
                raise gr.Error(html.escape(str(error)), print_exception=False) from error

        # Gradio reads from the signature where the request goes and how many values come.
        takes = list(inspect.signature(work).parameters.values())[1:]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        asked = inspect.Parameter("request", kind, annotation=gr.Request)
        vars(handler)["__signature__"] = inspect.Signature([asked, *takes])
        return event(handler, inputs, outputs, api_visibility="private", show_progress="hidden")


_STATES: dict[lead.RoundState, str] = {
    "open": "Open",
    "paused": "Pause",
    "closed": "Close to new cards",
}
_LABELER_NOTE = (
    "Seconds: the median card. Shares with their 95 % interval. Agreement and repeats count pairs "
    "of responses, a tie against a verdict half; with few prompts the interval is wide and the "
    "figure says little."
)


def _table(columns: tuple[str, ...]) -> gr.Dataframe:
    return gr.Dataframe(
        headers=list(columns),
        datatype="str",
        interactive=False,
        wrap=True,
        column_count=len(columns),
        column_widths=[max(90, 9 * len(name)) for name in columns],
    )


class _Desk:
    """The handlers, each for a lead who has been checked: `work(person, *values)`."""

    def __init__(self, store: LabelStore) -> None:
        self._store = store

    def rounds(self, _person: Person, current: str | None) -> Any:
        choices = [
            (f"{status.name or 'round'} · {status.state} · {status.round_id[:8]}", status.round_id)
            for status in self._store.rounds()
        ]
        ids = [round_id for _, round_id in choices]
        value = current if current in ids else ids[0] if ids else None
        return gr.Dropdown(choices=choices, value=value)

    def show(self, _person: Person, round_id: str | None) -> list[Any]:
        if not round_id:
            nothing = [pd.DataFrame(columns=list(c)) for c in (LABELER_COLUMNS, DISPUTE_COLUMNS)]
            counts = pd.DataFrame({"labeler": [], "rankings": [], "agreement": [], "hour": []})
            return ["<p>No round yet.</p>", counts, counts, nothing[0], counts, nothing[1]]
        status = self._store.progress(round_id)
        quality = round_quality(read_opinions(self._store, round_id))
        pace = lead.round_pace(self._store, round_id)
        told = quality.labelers
        return [
            summary_html(status, pace, quality),
            pd.DataFrame(pace.by_hour, columns=["hour", "rankings"]),
            pd.DataFrame([(q.labeler, q.rankings) for q in told], columns=["labeler", "rankings"]),
            pd.DataFrame([labeler_row(q) for q in told], columns=list(LABELER_COLUMNS)),
            pd.DataFrame(
                [(q.labeler, q.agreement.value) for q in told if q.agreement],
                columns=["labeler", "agreement"],
            ),
            pd.DataFrame(
                [
                    (d.prompt_id, d.labelers, f"{d.disagreement:.0%}", "\n".join(d.rankings))
                    for d in quality.disputes[:MAX_DISPUTES]
                ],
                columns=list(DISPUTE_COLUMNS),
            ),
        ]

    def office(self, _person: Person) -> list[Any]:
        known = accounts.people(self._store)
        return [
            pd.DataFrame(
                [
                    (p.name, p.pseudonym, p.role, _yes(p.active), _yes(p.has_password))
                    for p in known
                ],
                columns=list(PEOPLE_COLUMNS),
            ),
            pd.DataFrame(
                [audit_row(entry) for entry in audit.entries(self._store)],
                columns=list(AUDIT_COLUMNS),
            ),
        ]

    def texts(self, _person: Person) -> list[str]:
        newest = guidelines.current(self._store)
        return [newest.text_en, newest.text_zh] if newest else ["", ""]

    def mover(self, state: lead.RoundState) -> Callable[..., Any]:
        def move(person: Person, round_id: str | None) -> list[Any]:
            lead.set_round_state(self._store, round_id or "", state, actor=person.name)
            return self.show(person, round_id)

        return move

    def freeze(self, person: Person, round_id: str | None, incomplete: bool) -> list[Any]:
        lead.freeze_round(
            self._store, round_id or "", allow_incomplete=bool(incomplete), actor=person.name
        )
        return self.show(person, round_id)

    def invite(self, person: Person, name: str, role: str) -> str:
        key = accounts.invite(self._store, name.strip(), role=role, actor=person.name)
        return f"/join?key={key}"

    def admission(self, active: bool) -> Callable[..., Any]:
        def admit(person: Person, name: str) -> list[Any]:
            accounts.set_active(self._store, name.strip(), active, actor=person.name)
            return self.office(person)

        return admit

    def publish(self, person: Person, text_en: str, text_zh: str) -> list[Any]:
        guidelines.publish(self._store, text_en, text_zh, actor=person.name)
        return self.office(person)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def share_words(interval: Interval | None) -> str:
    """A share with its interval and count, e.g. `71 % (62-79, n 120)`."""
    if interval is None:
        return "too little to tell"
    return (
        f"{100 * interval.value:.0f} % "
        f"({100 * interval.low:.0f}-{100 * interval.high:.0f}, n {interval.n})"
    )


def labeler_row(quality: LabelerQuality) -> tuple[str, ...]:
    """A labeler's row of the table, in words."""
    return (
        quality.labeler,
        str(quality.rankings),
        f"{quality.median_seconds:.0f}",
        f"{100 * quality.tie_share:.0f} %",
        share_words(quality.agreement),
        share_words(quality.gold),
        share_words(quality.consistency),
        share_words(quality.first_on_top),
        f"{100 * quality.first_expected:.0f} %",
        share_words(quality.longer),
    )


def audit_row(entry: AuditEntry) -> tuple[str, ...]:
    """An entry of the audit log in words."""
    when = pd.Timestamp(entry.at_ms, unit="ms").strftime("%Y-%m-%d %H:%M:%S")
    detail = ", ".join(f"{name} {value}" for name, value in (entry.detail or {}).items())
    return when, entry.actor, entry.action, entry.object, detail


def summary_html(status: Any, pace: lead.Pace, quality: RoundQuality) -> str:
    """The round in figures; every text in it is escaped."""
    alpha = quality.alpha
    figures = [
        ("State", status.state),
        ("Rankings", f"{status.rankings_done} of {status.rankings_wanted}"),
        ("Prompts", f"{status.tasks - status.tasks_left_out}, {status.tasks_left_out} left out"),
        ("Labelers", str(status.labelers)),
        ("Time left", _hours(pace.hours_left)),
        ("Pairs agreed on", share_words(quality.agreement)),
        (
            "Krippendorff's alpha",
            f"{alpha.value:.2f} ({alpha.low:.2f} to {alpha.high:.2f})" if alpha else "too little",
        ),
        ("Ranked by", status.panel or "people"),
        ("Digest", status.frozen_digest or "not frozen"),
    ]
    cells = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in figures
    )
    return f"<dl class='figures'>{cells}</dl>"


def _hours(hours: float | None) -> str:
    if hours is None:
        return "unknown yet"
    if hours == 0:
        return "done"
    return f"about {hours:.1f} h" if hours >= 1 else f"about {60 * hours:.0f} min"


LEAD_CSS = """
.figures { display: flex; flex-wrap: wrap; gap: 12px 32px; margin: 8px 0 16px; }
.figures dt { color: #4a5568; font-size: 14px; }
.figures dd { margin: 0; font-size: 18px; font-weight: 600; overflow-wrap: anywhere; }
button.stop { background: #a11b14 !important; color: #fff !important; }
h1 { font-size: 22px; font-weight: 650; }
"""
