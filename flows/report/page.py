"""The page: sections in order, style inside, and nothing that asks for the network."""

import os
from importlib.resources import files
from pathlib import Path

from flows.durable import disk_errors
from flows.report.alarms import alarms_section
from flows.report.curves import curves_section
from flows.report.inputs import ReportInputs, read_inputs
from flows.report.judges import judges_section
from flows.report.markup import Html, tag
from flows.report.outcome import outcome_section
from flows.report.overview import notices, results_section, title
from flows.report.pipeline_picture import pipeline_section
from flows.report.provenance import provenance_section
from flows.report.resources import resources_section
from flows.report.rounds import rounds_section
from flows.report.sample_texts import texts_section

REPORT_NAME = "report.html"
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Even if a text got through unescaped, the browser would run and load nothing."""

_SECTIONS = {
    "results": ("Results", results_section),
    "pipeline": ("Pipeline", pipeline_section),
    "rounds": ("Rounds", rounds_section),
    "change": ("Before and after", outcome_section),
    "texts": ("Texts", texts_section),
    "judges": ("Judges", judges_section),
    "curves": ("Curves", curves_section),
    "alarms": ("Alarms", alarms_section),
    "resources": ("Time, memory", resources_section),
    "reproduce": ("Reproduce", provenance_section),
}


def write_report(run_folder: Path) -> Path:
    """Build `report.html` from the run's files; the same files give the same bytes.

    Parts whose files are missing are left out, and the report says so.

    Raises:
        StoreError: the folder is not a run's, or the report cannot be written.
    """
    page = _page(read_inputs(run_folder))
    path = run_folder / REPORT_NAME
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_errors(run_folder):
        try:
            temporary.write_text(page, encoding="utf-8", errors="replace")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def _page(inputs: ReportInputs) -> str:
    sections = {name: build(inputs) for name, (_, build) in _SECTIONS.items()}
    links = [
        tag("a", _SECTIONS[name][0], href=f"#{name}") for name, part in sections.items() if part
    ]
    style = files("flows.report").joinpath("page.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{inputs.run.name} · alignflow report"),
        tag("style", Html(style)),
    )
    body = tag(
        "body",
        title(inputs),
        notices(inputs),
        tag("nav", *links, aria_label="Sections"),
        tag("main", *sections.values()),
        tag("footer", "Written by alignflow from the files beside it; opens without a network."),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"
