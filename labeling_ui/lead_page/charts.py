"""Small pictures as SVG: an interval beside its number, and bars over time.

Everything is escaped by `Markup`; nothing is fetched, and a screen reader gets the words.
"""

from collections.abc import Sequence

from markupsafe import Markup

from alignment.statistics.bootstrap import Interval

WIDTH, HEIGHT = 104, 16


def interval_bar(interval: Interval, *, chance: float | None = None) -> Markup:
    """A share from 0 to 1 as a dot with its interval; `chance` is marked by a line."""

    def x(share: float) -> float:
        return round(4 + (WIDTH - 8) * min(1.0, max(0.0, share)), 1)

    mark = Markup("")
    if chance is not None:
        mark = Markup('<line class="chance" x1="{0}" x2="{0}" y1="0" y2="{1}"/>').format(
            x(chance), HEIGHT
        )
    return Markup(
        '<svg class="interval" viewBox="0 0 {w} {h}" width="{w}" height="{h}" aria-hidden="true">'
        '<line class="scale" x1="4" x2="{end}" y1="{y}" y2="{y}"/>{mark}'
        '<line class="span" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>'
        '<circle cx="{at}" cy="{y}" r="4"/></svg>'
    ).format(
        w=WIDTH,
        h=HEIGHT,
        end=WIDTH - 4,
        y=HEIGHT // 2,
        mark=mark,
        low=x(interval.low),
        high=x(interval.high),
        at=x(interval.value),
    )


def columns(values: Sequence[tuple[int, int, str]], *, title: str, unit: str) -> Markup:
    """Columns at whole positions from 1: (position, height, words for it)."""
    width, height, foot = 360, 150, 22
    top = max((value for _, value, _ in values), default=0) or 1
    last = max((position for position, _, _ in values), default=1)
    step = (width - 40) / last
    bars = Markup("").join(
        Markup(
            '<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="2"><title>{words}</title></rect>'
        ).format(
            x=round(36 + (position - 1) * step + step * 0.1, 1),
            y=round(height - foot - (height - foot - 16) * value / top, 1),
            w=round(min(48.0, step * 0.8), 1),
            h=round((height - foot - 16) * value / top, 1),
            words=words,
        )
        for position, value, words in values
    )
    every = max(1, -(-last // 8))
    ticks = Markup("").join(
        Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
            round(36 + (position - 1) * step + min(48.0, step * 0.8) / 2 + step * 0.1, 1),
            height - 8,
            position,
        )
        for position in range(1, last + 1, every)
    )
    return Markup(
        '<svg class="columns" viewBox="0 0 {w} {h}" role="img" aria-label="{title}">'
        '<line class="scale" x1="36" x2="{w}" y1="{base}" y2="{base}"/>'
        '<line class="grid" x1="36" x2="{w}" y1="16" y2="16"/>'
        '<text x="30" y="20" text-anchor="end">{top}</text>'
        '<text x="30" y="{base}" text-anchor="end">0</text>{bars}{ticks}'
        '<text class="unit" x="{w}" y="{unit_y}" text-anchor="end">{unit}</text></svg>'
    ).format(
        w=width,
        h=height,
        title=title,
        base=height - foot,
        top=top,
        bars=bars,
        ticks=ticks,
        unit=unit,
        unit_y=12,
    )


def rows_of_bars(values: Sequence[tuple[str, int]]) -> Markup:
    """Counts as a table in which each number has a bar of its length."""
    top = max((value for _, value in values), default=0) or 1
    return Markup("<table class='bars'>{}</table>").format(
        Markup("").join(
            Markup(
                "<tr><th scope='row'><bdi>{}</bdi></th><td>{}</td>"
                "<td class='length'><span style='width: {}%'></span></td></tr>"
            ).format(name, value, round(100 * value / top, 1))
            for name, value in values
        )
    )
