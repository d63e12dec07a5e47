"""Prompts that labelers see differently, with the texts and all rankings side by side."""

from collections.abc import Sequence

from markupsafe import Markup
from sqlalchemy import select

from labeling_ui.lead_page.words import Translate
from labeling_ui.quality import Dispute
from labeling_ui.schema import response, task
from labeling_ui.store import LabelStore
from labeling_ui.visible_text import visible_text

MAX_DISPUTES = 50
MAX_CHARACTERS = 1500
"""Of each text; the labelers saw it whole."""


def disputes_html(
    store: LabelStore, round_id: str, disputes: Sequence[Dispute], t: Translate
) -> str:
    """The sharpest disputes of a round; each opens to its texts and rankings."""
    if not disputes:
        told = t("Nobody contradicts anybody so far.")
        return str(Markup("<p class='empty'>{}</p>").format(told))
    told = t(
        "{n} prompts on which labelers contradict each other, the sharpest first.",
        n=len(disputes),
    )
    if len(disputes) > MAX_DISPUTES:
        told += " " + t("The first {n} are shown.", n=MAX_DISPUTES)
    shown = disputes[:MAX_DISPUTES]
    prompts, responses = _texts(store, round_id, [dispute.prompt_id for dispute in shown])
    parts = Markup("").join(
        _dispute(dispute, prompts[dispute.prompt_id], responses[dispute.prompt_id], t)
        for dispute in shown
    )
    return str(Markup("<p>{}</p><div class='disputes'>{}</div>").format(told, parts))


def _texts(
    store: LabelStore, round_id: str, prompt_ids: Sequence[str]
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The last turn of each prompt, and its responses as published."""
    with store.read() as connection:
        tasks = connection.execute(
            select(task.c.id, task.c.prompt_id, task.c.messages).where(
                task.c.round_id == round_id, task.c.prompt_id.in_(prompt_ids)
            )
        ).all()
        rows = connection.execute(
            select(response.c.task_id, response.c.text)
            .where(response.c.task_id.in_([row.id for row in tasks]))
            .order_by(response.c.task_id, response.c.position)
        ).all()
    prompt_of = {row.id: row.prompt_id for row in tasks}
    responses: dict[str, list[str]] = {}
    for task_id, text in rows:
        responses.setdefault(prompt_of[task_id], []).append(text)
    return {row.prompt_id: row.messages[-1][1] for row in tasks}, responses


def _dispute(dispute: Dispute, prompt: str, responses: Sequence[str], t: Translate) -> Markup:
    texts = Markup("").join(
        Markup("<li><h3>{}</h3>{}</li>").format(t("Response {n}", n=n + 1), _text(text, t))
        for n, text in enumerate(responses)
    )
    rankings = Markup("").join(
        Markup("<tr><th scope='row'><bdi>{}</bdi></th><td>{}</td></tr>").format(
            *ranking.split(": ", 1)
        )
        for ranking in dispute.rankings
    )
    opposed = t(
        "{share} % opposed, {n} labelers",
        share=f"{100 * dispute.disagreement:.0f}",
        n=dispute.labelers,
    )
    return Markup(
        "<details><summary><bdi>{excerpt}</bdi> <span>{opposed}</span></summary>"
        "<h3>{prompt_words}</h3>{prompt}<table><caption>{how}</caption>{rankings}</table>"
        "<ol>{texts}</ol></details>"
    ).format(
        excerpt=visible_text(prompt[:110]),
        opposed=opposed,
        prompt_words=t("Prompt"),
        prompt=_text(prompt, t),
        how=t("Best first, tied responses with ="),
        rankings=rankings,
        texts=texts,
    )


def _text(text: str, t: Translate) -> Markup:
    cut = " " + t("(shortened)") if len(text) > MAX_CHARACTERS else ""
    return Markup("<p class='text' dir='auto'>{}{}</p>").format(
        visible_text(text[:MAX_CHARACTERS]), cut
    )
