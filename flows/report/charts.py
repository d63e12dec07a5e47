"""Plots as SVG that is part of the page: its colours follow the page's light or dark theme."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

from alignment.statistics.bootstrap import Interval
from flows.report.markup import Html, tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that nobody would choose, exchanged for the page's own after drawing.
_INK, _LINE, _AFTER, _BEFORE, _LIMIT = "#010101", "#020202", "#030303", "#040404", "#050505"
_PAGE_COLOURS = {
    _INK: "var(--soft)",
    _LINE: "var(--line)",
    _AFTER: "var(--after)",
    _BEFORE: "var(--before)",
    _LIMIT: "var(--bad)",
}
_MOST_POINTS = 400
_FEW_POINTS = 16
_CURVE_IN = (3.6, 1.75)
_INTERVALS_WIDTH_IN, _ROW_IN = 4.6, 0.38
_LETTER_IN = 0.09
_STYLE = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "font.size": 8.0,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A horizontal line that the curve is read against, e.g. a budget."""

    value: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalRow:
    """One row of an interval chart: a label, the SFT (or baseline) and the PPO (or own) figure."""

    label: str
    before: Interval
    after: Interval


def curve(
    steps: Sequence[float],
    values: Sequence[float | None],
    *,
    label: str,
    limit: Limit | None = None,
) -> Html:
    """A line over steps; None is a gap. Long runs are thinned to every n-th step."""
    stride = -(-len(steps) // _MOST_POINTS)
    kept = sorted({*range(0, len(steps), stride), len(steps) - 1})
    shown = [float("nan") if (v := values[i]) is None else v for i in kept]

    def draw(axes: "Axes") -> None:
        marker = "o" if len(kept) <= _FEW_POINTS else None
        axes.plot([steps[i] for i in kept], shown, color=_AFTER, lw=1.6, marker=marker, ms=3.5)
        if limit is not None:
            axes.axhline(limit.value, color=_LIMIT, lw=1.0, ls=(0, (4, 3)))
            axes.annotate(
                limit.label,
                (1.0, limit.value),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                color=_LIMIT,
            )
        axes.margins(x=0.03, y=0.15)
        axes.grid(visible=False, axis="x")
        axes.locator_params(axis="y", nbins=4)
        axes.locator_params(axis="x", nbins=6, integer=True)

    return _svg(draw, _CURVE_IN, label, left_in=0.44)


def interval_chart(
    rows: Sequence[IntervalRow], *, label: str, reference: float | None = None
) -> Html:
    """A dot with its 95% interval for each figure, before above after, one pair a row."""

    def draw(axes: "Axes") -> None:
        for place, row in enumerate(rows):
            for interval, colour, shift in (
                (row.before, _BEFORE, -0.15),
                (row.after, _AFTER, 0.15),
            ):
                height = place + shift
                axes.plot([interval.low, interval.high], [height] * 2, color=colour, lw=2.0)
                axes.plot([interval.value], [height], "o", color=colour, ms=5.5)
        if reference is not None:
            axes.axvline(reference, color=_LIMIT, lw=1.0, ls=(0, (4, 3)))
        axes.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=10)
        axes.tick_params(axis="x", labelsize=10)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.locator_params(axis="x", nbins=6)

    size = (_INTERVALS_WIDTH_IN, 0.4 + _ROW_IN * len(rows))
    longest = max(len(row.label) for row in rows)
    return _svg(draw, size, label, left_in=0.2 + _LETTER_IN * longest)


def legend(before: str, after: str) -> Html:
    """What the two colours of an interval chart mean, for its caption."""
    return tag(
        "span",
        tag("span", tag("i", class_="dot before"), before),
        tag("span", tag("i", class_="dot after"), after),
        class_="legend",
    )


def _svg(
    draw: Callable[["Axes"], None], size_in: tuple[float, float], label: str, *, left_in: float
) -> Html:
    """Draw on a figure of its own, with fixed margins; no global state of matplotlib changes."""
    import matplotlib
    from matplotlib.figure import Figure

    width, height = size_in
    # The salt makes ids differ between charts and be the same in every writing of the report.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": label}):
        figure = Figure(figsize=size_in)
        figure.subplots_adjust(
            left=left_in / width,
            right=1 - 0.08 / width,
            bottom=0.24 / height,
            top=1 - 0.16 / height,
        )
        draw(figure.add_subplot())
        written = StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(written, format="svg", transparent=True, metadata=metadata)
    return tag(
        "div", _for_the_page(written.getvalue()), class_="plot", role="img", aria_label=label
    )


def _for_the_page(svg: str) -> Html:
    body = svg[svg.index("<svg") :]
    body = re.sub(r' (?:width|height)="[\d.]+pt"', "", body)
    body = re.sub(r"<(style|metadata)\b.*?</\1>", "", body, flags=re.DOTALL)  # would style the page
    for drawn, shown in _PAGE_COLOURS.items():
        body = body.replace(drawn, shown)
    return Html(body)
