"""What is on the lead's page, and which work each of its events does."""

import json
from pathlib import Path
from typing import Any

import gradio as gr

from labeling_ui import accounts
from labeling_ui.identity import Identity
from labeling_ui.lead_page.office_desk import OfficeDesk
from labeling_ui.lead_page.publish_desk import PublishDesk
from labeling_ui.lead_page.round_desk import STATES, RoundDesk
from labeling_ui.lead_page.wiring import Wiring
from labeling_ui.lead_page.words import FREEZE_QUESTION, label
from labeling_ui.store import LabelStore

REFRESH_S = 30.0
ASKED = [(label(words), words) for words in ("off", "optional", "required")]


def lead_page(store: LabelStore, identity: Identity, artifacts: Path | None) -> gr.Blocks:
    """The Gradio page over one label store.

    `artifacts` is the folder under which candidates are found for new rounds; None: nowhere.
    """
    on = Wiring(identity)
    with gr.Blocks(title="Lead · alignflow", analytics_enabled=False) as page:
        title = gr.HTML(padding=False)
        with gr.Row(elem_classes="chooser"):
            chosen = gr.Dropdown([], label=label("Round"), scale=4, allow_custom_value=False)
            refresh = gr.Button(label("Refresh"), scale=0, min_width=140)
        round_desk, office = RoundDesk(store), OfficeDesk(store)
        shown = [gr.HTML(padding=False)]
        with gr.Row(elem_classes="states"):
            movers = {state: gr.Button(label(words)) for state, words in STATES.items()}
            incomplete = gr.Checkbox(label=label("Freeze although rankings are missing"))
            freeze = gr.Button(label("Freeze for good"), variant="stop")
        with gr.Tabs():
            for words in ("Progress", "Labelers", "Disputes", "Export"):
                with gr.Tab(label(words)):
                    shown.append(gr.HTML(padding=False))
            with gr.Tab(label("New round")):
                publishing = _publish_form(page, on, PublishDesk(store, artifacts))
            with gr.Tab(label("People")):
                people = _people(on, office)
            with gr.Tab(label("Guidelines")):
                _guidelines(page, on, office)
            with gr.Tab(label("Audit log")):
                log = gr.HTML(padding=False)

        on(page.load, round_desk.title, [], [title], quiet=True)
        opened = on(page.load, round_desk.rounds, [chosen], [chosen])
        on(opened.then, round_desk.show, [chosen], shown)
        renewed = on(refresh.click, round_desk.rounds, [chosen], [chosen])
        on(renewed.then, round_desk.show, [chosen], shown)
        on(chosen.input, round_desk.show, [chosen], shown)
        on(gr.Timer(REFRESH_S).tick, round_desk.progress, [chosen], shown[:2], quiet=True)
        done = [
            on(button.click, round_desk.mover(state), [chosen], shown[:2])
            for state, button in movers.items()
        ]
        asks = f"""(round, incomplete) => {{
            const words = {json.dumps(FREEZE_QUESTION)};
            const chinese = navigator.language.toLowerCase().startsWith("zh");
            return [confirm(words[chinese ? "zh" : "en"]) ? round : null, incomplete];
        }}"""
        done.append(on(freeze.click, round_desk.freeze, [chosen, incomplete], shown, js=asks))
        for event in done:
            listed = on(event.then, round_desk.rounds, [chosen], [chosen], quiet=True)
            on(listed.then, office.log, [], [log], quiet=True)
        followed = on(publishing.success, round_desk.newest, [], [chosen])
        on(followed.then, round_desk.show, [chosen], shown)
        for event in (page.load, refresh.click):
            on(event, office.people, [], [people], quiet=True)
            on(event, office.log, [], [log], quiet=True)
    return page


def _publish_form(page: gr.Blocks, on: Wiring, desk: PublishDesk) -> Any:
    """The form of a new round; gives its last event."""
    note = gr.HTML(padding=False)
    with gr.Row(elem_classes="form-row"):
        source = gr.Dropdown([], label=label("Candidates"), scale=3)
        name = gr.Textbox(label=label("Name of the round"), max_lines=1, max_length=80)
        overlap = gr.Number(2, label=label("Rankings per prompt"), precision=0, minimum=1)
    with gr.Row(elem_classes="form-row"):
        shares = [
            gr.Slider(0, 0.3, value=value, step=0.01, label=label(words))
            for words, value in (
                ("Share of gold cards", 0.0),
                ("Share of attention checks", 0.05),
                ("Share of repeats", 0.05),
            )
        ]
        gold = gr.Dropdown([], label=label("Gold from the settled round"))
    with gr.Row(elem_classes="form-row"):
        strength = gr.Dropdown(ASKED, value="optional", label=label("How much better"))
        reason = gr.Dropdown(ASKED, value="optional", label=label("A reason in words"))
        criteria = gr.Textbox(label=label("Criteria, scored 1 to 5 (comma between)"), max_lines=1)
        minutes = gr.Number(20, label=label("A card is held for (minutes)"), minimum=1)
    publish = gr.Button(label("Publish the round"), variant="primary")
    told = gr.HTML(padding=False)
    sources = [note, source, gold]
    on(page.load, desk.sources, [], sources, quiet=True)
    asked = [source, name, overlap, *shares, gold, strength, reason, criteria, minutes]
    return on(publish.click, desk.publish, asked, [told])


def _people(on: Wiring, desk: OfficeDesk) -> gr.HTML:
    table = gr.HTML(padding=False)
    with gr.Row(elem_classes="form-row"):
        name = gr.Textbox(label=label("Name"), max_lines=1, max_length=60)
        roles = [(label(role), role) for role in accounts.ROLES]
        role = gr.Dropdown(roles, value="labeler", label=label("Role"))
    with gr.Row(elem_classes="states"):
        invite = gr.Button(label("Make an invitation"), variant="primary")
        change = gr.Button(label("Give this role"))
        suspend, admit = gr.Button(label("Suspend")), gr.Button(label("Admit again"))
    link = gr.Textbox(
        label=label("Invitation (works once, for a week)"), interactive=False, buttons=["copy"]
    )
    made = on(invite.click, desk.invite, [name, role], [link])
    on(made.then, desk.people, [], [table], quiet=True)
    on(change.click, desk.give_role, [name, role], [table])
    on(suspend.click, desk.admission(False), [name], [table])
    on(admit.click, desk.admission(True), [name], [table])
    return table


def _guidelines(page: gr.Blocks, on: Wiring, desk: OfficeDesk) -> None:
    state = gr.HTML(padding=False)
    with gr.Row(elem_classes="form-row"):
        texts = [
            gr.Textbox(label=label(f"{language} (Markdown)"), lines=12)
            for language in ("English", "Chinese")
        ]
    publish = gr.Button(label("Publish as a new version"), variant="primary")
    on(page.load, desk.guidelines, [], [state, *texts], quiet=True)
    on(publish.click, desk.publish_guidelines, texts, [state, *texts])
