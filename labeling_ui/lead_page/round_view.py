"""How a round looks to its lead: head, figures, progress, export. All words are escaped."""

from collections.abc import Sequence

from markupsafe import Markup

from alignment.statistics.bootstrap import Interval
from labeling_ui.cards import RoundStatus
from labeling_ui.lead import Pace, RoundEvents
from labeling_ui.lead_page.charts import columns, rows_of_bars
from labeling_ui.lead_page.words import Translate
from labeling_ui.quality import RoundQuality

LOW_ALPHA = 0.2
"""Below it a lead is told; open-ended preferences often reach 0.3 to 0.5 only."""
HOURS_SHOWN = 96
"""A round that takes longer is shown by day."""


def title_html(name: str, t: Translate) -> str:
    """The page's heading, and who is signed in."""
    return str(
        Markup(
            "<header class='lead-head'><h1>{}</h1><p>{} <bdi>{}</bdi></p>"
            "<a href='/rank/'>{}</a>"
            "<form method='post' action='/sign-out'><button type='submit'>{}</button></form>"
            "</header>"
        ).format(t("Ranking rounds"), t("Signed in as"), name, t("Rank yourself"), t("Sign out"))
    )


def summary_html(
    status: RoundStatus,
    pace: Pace,
    alpha: Interval | None,
    agreement: Interval | None,
    t: Translate,
) -> str:
    """The round in figures."""
    counted = t("{done} of {wanted}", done=status.rankings_done, wanted=status.rankings_wanted)
    figures = [
        ("State", t(status.state)),
        ("Rankings", counted),
        ("Time left", time_left(pace, t)),
        ("Labelers", status.labelers),
        (
            "Prompts",
            t(
                "{n}, {out} left out",
                n=status.tasks - status.tasks_left_out,
                out=status.tasks_left_out,
            ),
        ),
        ("Pairs agreed on", _with_interval(agreement, "{:.0f} %", 100, t)),
        ("Krippendorff's alpha", _with_interval(alpha, "{:.2f}", 1, t)),
        ("Ranked by", status.panel or t("people")),
        ("Digest", (status.frozen_digest or "")[:16] or t("not frozen")),
    ]
    cells = Markup("").join(
        Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(t(name), value)
        for name, value in figures
    )
    warning = ""
    if alpha is not None and alpha.high < LOW_ALPHA:
        told = "Agreement is low: look at the disputes, and at whether the guidelines settle them."
        warning = Markup("<p class='warning'>{}</p>").format(t(told))
    share = 100 * status.rankings_done / max(1, status.rankings_wanted)
    return str(
        Markup(
            "<div class='meter' role='img' aria-label='{counted}'>"
            "<span style='width: {share:.1f}%'></span></div>"
            "<dl class='figures'>{cells}</dl>{warning}"
        ).format(counted=counted, share=share, cells=cells, warning=warning)
    )


def _with_interval(
    interval: Interval | None, form: str, scale: float, t: Translate
) -> Markup | str:
    if interval is None:
        return t("too little to tell")
    value, low, high = (
        form.format(scale * x) for x in (interval.value, interval.low, interval.high)
    )
    told = t("95 %: {low} to {high}, n {n}", low=low, high=high, n=interval.n)
    return Markup("{}<small>{}</small>").format(value, told)


def time_left(pace: Pace, t: Translate) -> str:
    """Hours or minutes left, as a range."""
    if pace.hours_left is None:
        return t("unknown yet")
    low, high = pace.hours_left
    if high == 0:
        return t("done")
    unit = "min" if high < 2 else "h"
    shown = [f"{max(1, 60 * x):.0f}" if unit == "min" else f"{x:.1f}" for x in (low, high)]
    if shown[0] == shown[1]:
        return t("about {n} " + unit, n=shown[0])
    return t("{low} to {high} " + unit, low=shown[0], high=shown[1])


def share_words(interval: Interval | None, t: Translate) -> str:
    """A share with its interval and count, e.g. `71 % (62 – 79, n 120)`."""
    if interval is None:
        return t("too little to tell")
    return (
        f"{100 * interval.value:.0f} % "
        f"({100 * interval.low:.0f} – {100 * interval.high:.0f}, n {interval.n})"
    )


def progress_html(pace: Pace, events: RoundEvents, t: Translate) -> str:
    """Rankings over time and by labeler; what was skipped, unsafe, or not blind."""
    if not pace.by_hour:
        return str(Markup("<p class='empty'>{}</p>").format(t("Nothing has been ranked yet.")))
    unit, counts = _over_time(pace.by_hour)
    title = t("Rankings by hour") if unit == "hour" else t("Rankings by day")
    bars = [(k, n, t("{n} rankings in {unit} {k}", n=n, unit=t(unit), k=k)) for k, n in counts]
    leaks = Markup("<p>{}</p>").format(t("None was found."))
    if events.leaks:
        told = "{n} of {total} responses, e.g. “{phrase}”. Whoever reads one is no longer blind."
        leaks = Markup("<p>{}</p>").format(
            t(told, n=events.leaks, total=events.responses, phrase=events.leak_example)
        )
    parts = [
        (title, columns(bars, title=title, unit=t(unit))),
        (t("Rankings by labeler"), rows_of_bars(events.by_labeler)),
        (t("Skipped cards"), _counts(events.skips, "Nothing was skipped.", t)),
        (t("Unsafe responses"), _counts(events.unsafe, "No response was called unsafe.", t)),
        (t("Responses that name what wrote them"), leaks),
    ]
    return str(
        Markup("<div class='panels'>{}</div>").format(
            Markup("").join(
                Markup("<section><h2>{}</h2>{}</section>").format(words, part)
                for words, part in parts
            )
        )
    )


def _over_time(by_hour: Sequence[tuple[int, int]]) -> tuple[str, list[tuple[int, int]]]:
    if by_hour[-1][0] <= HOURS_SHOWN:
        return "hour", list(by_hour)
    days: dict[int, int] = {}
    for hour, count in by_hour:
        day = (hour - 1) // 24 + 1
        days[day] = days.get(day, 0) + count
    return "day", sorted(days.items())


def _counts(counts: Sequence[tuple[str, int]], nothing: str, t: Translate) -> Markup:
    if not counts:
        return Markup("<p>{}</p>").format(t(nothing))
    return rows_of_bars([(t(name).replace("_", "-"), count) for name, count in counts])


def export_html(round_id: str, quality: RoundQuality, t: Translate) -> str:
    """The form that downloads a round's tables."""
    told = (
        "Parquet tables of this round: annotations, comparisons, consensus, labelers, the groups "
        "that reward-model training reads, and a manifest with their SHA-256. Names stay here; "
        "people leave as pseudonyms. Gold, attention and repeat cards never reach training."
    )
    if not any(labeler.rankings for labeler in quality.labelers):
        nothing = t("There is nothing to export yet.")
        return str(Markup("<p>{}</p><p class='empty'>{}</p>").format(t(told), nothing))
    people = Markup("").join(
        Markup(
            "<label><input type='checkbox' name='without' value='{0}'> <bdi>{0}</bdi></label>"
        ).format(labeler.labeler)
        for labeler in quality.labelers
    )
    return str(
        Markup(
            "<p>{told}</p><form class='export' method='get' action='/export'>"
            "<input type='hidden' name='round' value='{round_id}'>"
            "<fieldset><legend>{without}</legend>{people}</fieldset>"
            "<label>{share} <input name='heldout_share' type='number' value='0.1' min='0' "
            "max='0.9' step='0.01'></label>"
            "<label>{seed} <input name='seed' type='number' value='0' min='0' step='1'></label>"
            "<button type='submit'>{download}</button></form>"
        ).format(
            told=t(told),
            round_id=round_id,
            without=t("Leave out"),
            people=people,
            share=t("Held-out share of prompts"),
            seed=t("Seed of the split"),
            download=t("Download"),
        )
    )
