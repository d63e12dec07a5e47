"""How to get the same again: command, versions, processes, settings, every recorded figure."""

import json
from collections.abc import Iterator

from flows.report.inputs import ReportInputs
from flows.report.markup import Content, Html, minus, section, table, tag
from flows.report.resources import actors_table
from flows.report.wording import number
from flows.summary import Summary, Versions


def provenance_section(inputs: ReportInputs) -> Html:
    """The end of the report."""
    command = (inputs.summary.command if inputs.summary else "") or inputs.run.command
    parts: list[Content] = []
    if command:
        parts.append(tag("pre", tag("code", command)))
    if inputs.summary is not None:
        parts += _of_summary(inputs.summary)
    settings = json.dumps(inputs.run.config, indent=2, ensure_ascii=False)
    parts.append(_folded("Every setting, defaults included", tag("pre", tag("code", settings))))
    return section(
        "reproduce",
        "To get the same again",
        "The command with these versions and the same seed; results move a little between "
        "machines and numbers of threads, because sums are taken in another order.",
        *parts,
    )


def _of_summary(summary: Summary) -> Iterator[Html]:
    given = summary.versions
    versions = given.model_dump(exclude={"other", "not_loaded"}) | given.other
    yield tag(
        "dl",
        *(
            tag("div", tag("dt", name), tag("dd", version or _not_loaded(given, name)))
            for name, version in versions.items()
        ),
        tag("div", tag("dt", "machine"), tag("dd", summary.machine.platform)),
        class_="versions",
    )
    if actors := actors_table(summary):
        yield tag("h3", "Processes that held the roles")
        yield actors
    rows = [
        [
            tag("span", name, tag("small", target.about)),
            minus(f"{target.value:.4g} {target.unit}".strip()),
            minus(f"{target.low:.4g} to {target.high:.4g}") if target.low is not None else "–",
            number(target.n),
            str(target.seed),
        ]
        for name, target in summary.targets.items()
    ]
    if rows:
        figures = table(("Figure", "Value", "95% interval", "n", "Seed"), rows)
        yield _folded(f"All {len(rows)} figures of summary.json", figures)


def _not_loaded(versions: Versions, name: str) -> str:
    why = versions.not_loaded.get(name)
    return f"not loaded: {why}" if why else "not loaded"


def _folded(heading: str, content: Html) -> Html:
    return tag("details", tag("summary", heading), content)
