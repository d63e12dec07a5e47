"""Labelers as a table in which each share is a number and a picture of its interval."""

from markupsafe import Markup

from alignment.statistics.bootstrap import Interval
from labeling_ui.lead_page.charts import interval_bar
from labeling_ui.lead_page.round_view import share_words
from labeling_ui.lead_page.words import Translate
from labeling_ui.quality import LabelerQuality, RoundQuality

COLUMNS = (
    "Labeler",
    "Rankings",
    "Seconds a card (median)",
    "Ties",
    "Agreement with the others",
    "Gold and attention passed",
    "Repeats alike",
    "First shown on top",
    "Longer preferred",
)
NOTE = (
    "Dot and bar: the share and its 95 % interval, from 0 to 100 %. The thin line marks what "
    "chance would give. Agreement is with the other labelers of the same prompts; agreement and "
    "repeats count pairs of responses, a tie against a verdict half. With few prompts the "
    "interval is wide and the figure says little."
)


def labelers_html(quality: RoundQuality, t: Translate) -> str:
    """All labelers of a round, in the order of their pseudonyms."""
    if not quality.labelers:
        return str(Markup("<p class='empty'>{}</p>").format(t("Nothing has been ranked yet.")))
    head = Markup("").join(Markup("<th scope='col'>{}</th>").format(t(name)) for name in COLUMNS)
    rows = Markup("").join(_row(labeler, t) for labeler in quality.labelers)
    return str(
        Markup(
            "<p>{note}</p><div class='wide' tabindex='0' role='region' aria-label='{name}'>"
            "<table class='labelers'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
            "</div>"
        ).format(note=t(NOTE), name=t("Labelers"), head=head, rows=rows)
    )


def _row(quality: LabelerQuality, t: Translate) -> Markup:
    expected = t("expected {share} %", share=f"{100 * quality.first_expected:.0f}")
    return Markup(
        "<tr><th scope='row'><bdi>{}</bdi></th><td>{}</td><td>{:.0f}</td><td>{:.0f} %</td>"
        "{}{}{}{}{}</tr>"
    ).format(
        quality.labeler,
        quality.rankings,
        quality.median_seconds,
        100 * quality.tie_share,
        _share(quality.agreement, t, chance=0.5),
        _share(quality.gold, t),
        _share(quality.consistency, t, chance=0.5),
        _share(quality.first_on_top, t, chance=quality.first_expected, note=expected),
        _share(quality.longer, t, chance=0.5),
    )


def _share(
    interval: Interval | None, t: Translate, *, chance: float | None = None, note: str = ""
) -> Markup:
    if interval is None:
        return Markup("<td class='little'>{}</td>").format(t("too little to tell"))
    told = Markup("<small>{}</small>").format(note) if note else ""
    return Markup("<td>{}{}{}</td>").format(
        interval_bar(interval, chance=chance), share_words(interval, t), told
    )
