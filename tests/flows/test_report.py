"""The report: what it shows, what it never does, and what it does without."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_fixture import HOSTILE, write_run, write_run_file

from alignment.config import PipelineConfig
from alignment.errors import StoreError
from alignment.evaluation.result import read_evaluation
from alignment.evaluation.samples import read_samples, write_samples
from alignment.metrics import check_names
from alignment.statistics.bootstrap import Interval
from flows.metrics_log import read_metrics
from flows.report import write_report
from flows.report.curves import SHOWN_METRICS
from flows.report.inputs import EVALUATION_NAME, SAMPLES_NAME
from flows.report.overview import verdict

SECTIONS = {
    "results",
    "pipeline",
    "change",
    "texts",
    "judges",
    "curves",
    "resources",
    "reproduce",
}
ALLOWED_TAGS = """
html head meta title style body header nav main section article footer h1 h2 h3 h4 p a b i span
small div ul ol li dl dt dd pre code figure figcaption table caption thead tbody tr th td details
summary svg g path defs clippath rect use text
"""


class Page(HTMLParser):
    """What a browser would make of the page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self._collecting = 0
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if self._collecting:
            self._collecting += tag not in ("meta", "path", "use", "rect")
        elif ("class", "text") in attrs:
            self._collecting = 1
            self.texts.append("")

    def handle_endtag(self, tag):
        if self._collecting:
            self._collecting -= 1

    def handle_data(self, data):
        if self._collecting:
            self.texts[-1] += data


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("runs") / "quickstart")
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def html(run) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


def section_of(html: str, name: str) -> str:
    return html[html.index(f'<section id="{name}">') :].partition("</section>")[0]


@pytest.fixture
def copy(run, tmp_path) -> Path:
    """The run again, to be damaged; with the shortest metrics only, because plots take time."""
    folder = Path(shutil.copytree(run, tmp_path / "copy"))
    for name in ("sft", "ppo"):
        (folder / "metrics" / f"{name}.jsonl").unlink()
    return folder


def report_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def test_every_section_is_there_and_says_how_to_read_it(html):
    assert set(re.findall(r'<section id="(\w+)">', html)) == SECTIONS
    assert set(re.findall(r'<a href="#(\w+)">', html)) == SECTIONS
    for name in SECTIONS:
        assert '<p class="how">' in section_of(html, name).partition("</h2>")[2][:20]


def test_nothing_on_the_page_asks_for_the_network_or_runs(html):
    page = Page(html)
    assert page.tags <= set(ALLOWED_TAGS.split())
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        if name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            assert value.startswith("#"), value
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []
    assert "default-src &#x27;none&#x27;" in html


def test_plots_take_the_page_s_colours_and_give_it_no_style(html):
    assert html.count("<style") == 1
    assert not re.findall(r"#0[1-5]0[1-5]0[1-5]", html)
    plots = html.split('class="plot"')[1:]
    assert all("var(--after)" in plot.partition("</svg>")[0] for plot in plots)
    ids = re.findall(r' id="([^"]+)"', html.partition("</head>")[2])
    drawn = [i for i in ids if re.match(r"[pm][0-9a-f]{10}", i)]
    assert drawn
    assert len(drawn) == len(set(drawn))


def test_hostile_texts_come_out_as_text(html):
    shown = Page(html).texts
    for text in HOSTILE[:1] + HOSTILE[2:5]:
        assert any(text in seen for seen in shown), text


def test_invisible_characters_are_shown_by_their_code_point(html):
    assert not set("\u202e\u202c\u200b\x07\ufeff") & set(html)
    marks = '<span class="codepoint">U+202E</span>gnihton si siht<span class="codepoint">U+202C'
    assert marks in html
    assert "zero" + '<span class="codepoint">U+200B</span>' + "width" in html


def test_an_empty_response_is_called_empty(html):
    assert '<span class="codepoint">empty</span>' in html


def test_hostile_names_come_out_as_text(copy):
    evil = 'alignflow run "<script>alert(1)</script>"'
    write_run_file(copy, PipelineConfig(), command=evil, state="failed", detail=f"E: {evil}")
    (copy / "summary.json").unlink()
    html = report_of(copy)
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;&quot;") == 2
    assert "script" not in Page(html).tags


def test_simulated_labels_are_called_simulated(html):
    assert "The rankings are SIMULATED." in html
    assert "Rankings by the SIMULATED panel" in section_of(html, "judges")
    assert "simulated panel ranks" in section_of(html, "pipeline")
    assert "simulated" in section_of(html, "results")


def test_rankings_by_people_are_not(tmp_path):
    html = report_of(write_run(tmp_path / "r", prompts=8, simulated=False, metrics=False))
    assert "simulated" not in html.partition("<body>")[2].partition("Every setting")[0].lower()
    assert "people rank" in section_of(html, "pipeline")
    assert "Gold" not in section_of(html, "results")
    assert "5-fold" in section_of(html, "results")
    assert "By fold, people&#x27;s pairs: 0.000, 1.000" in section_of(html, "judges")
    assert "the reward model&#x27;s own score" in html


def test_the_headline_shows_value_interval_n_and_goal(run, html):
    gain = read_evaluation(run / "evaluation.json").headline.difference["gold"]
    results = section_of(html, "results")
    row = results[results.index("Gold gain") :].partition("</tr>")[0]
    assert f"{gain.value:+.3f}" in row
    assert f"{gain.low:.3f} to {gain.high:.3f}".replace("-", "−") in row
    assert f"{gain.clusters} prompts, {gain.n} values" in row
    assert ("badge good" if gain.low > 0 else "badge bad") in row


def test_checks_that_failed_are_shown_as_failed(html):
    results = section_of(html, "results")
    assert "3 of 4 passed" in results
    assert re.search(r'badge bad">failed</span><span>roles in processes', results)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.01, 0.19, "PPO raised the simulated gold score by 0.100"),
        (-0.01, 0.21, "No change of the simulated gold score was shown: +0.10"),
        (-0.19, -0.01, "PPO lowered the simulated gold score: −0.100"),
    ],
)
def test_the_verdict_is_no_stronger_than_the_interval(run, low, high, words):
    comparison = read_evaluation(run / "evaluation.json").headline
    value = 0.1 if high > 0 else -0.1
    gain = Interval(value=value, low=low, high=high, n=200, clusters=100)
    changed = replace(comparison, difference={**comparison.difference, "gold": gain})
    assert verdict(changed).startswith(words)


def test_texts_are_chosen_without_looking_and_then_by_gain(run, html):
    headings = re.findall(r"<h3>([^<]*)</h3>", section_of(html, "texts"))
    assert headings == [
        "Chosen without looking, by a hash of the prompt",
        "Largest gains in gold",
        "Largest losses in gold",
    ]
    assert section_of(html, "texts").count("<article>") == 40


def test_no_gain_and_no_loss_is_shown_where_there_is_none(copy):
    samples = read_samples(copy / "samples.jsonl")
    alike = [replace(sample, gold_total=0.5) for sample in samples]
    write_samples(alike, copy / "samples.jsonl")
    texts = section_of(report_of(copy), "texts")
    assert "Largest" not in texts


def test_every_stage_has_its_time_and_state(html):
    pipeline = section_of(html, "pipeline")
    cards = re.findall(r"<li.*?</li>", pipeline)
    assert len(cards) == 8
    assert "2.4 s" in cards[1]
    assert "state reused" in cards[1]
    assert "4m11s" in cards[6]
    assert "state done" in cards[6]


def test_curves_are_of_declared_metrics_and_the_fixture_records_only_those(run, html):
    check_names(SHOWN_METRICS)
    rows = [row for path in (run / "metrics").iterdir() for row in read_metrics(path)]
    recorded = {name for row in rows for name in row} - {"step", "wall_s"}
    check_names(recorded)
    shown = recorded & set(SHOWN_METRICS)
    assert section_of(html, "curves").count("<figure>") == len(shown)


def test_a_value_that_is_not_finite_is_a_gap(run, html):
    assert read_metrics(run / "metrics" / "ppo.jsonl")[0]["ppo/explained_variance"] is None
    figure = next(f for f in html.split("<figure>") if "<b>explained variance</b>" in f)
    assert "0.590" in figure


def test_memory_and_time_say_where_they_went(html):
    resources = section_of(html, "resources")
    for expected in ("policy/0", "2.94 GiB", "update policy", "model start", "9.40 GiB"):
        assert expected in resources


def test_phases_longer_than_their_steps_took_place_at_the_same_time(run, copy, html):
    said = "some phases at the same time"
    assert said not in html
    rows = read_metrics(run / "metrics" / "ppo.jsonl")
    metrics = copy / "metrics" / "ppo.jsonl"
    metrics.parent.mkdir(exist_ok=True)
    for row in rows:
        row["time/step_s"] *= 0.8
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    resources = section_of(report_of(copy), "resources")
    assert said in resources
    assert "the rest" not in resources.split("Time by phase of PPO")[1].split("<h3")[0]
    for row in rows:
        del row["time/step_s"]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert said not in report_of(copy)


def test_it_can_be_done_again_with_what_stands_there(html):
    reproduce = section_of(html, "reproduce")
    for expected in ("alignflow run flows/configs/quickstart.toml", "2.13.0+cpu", "pid 5004"):
        assert expected in reproduce
    assert "kl_coefficient" in reproduce


def test_the_same_files_give_the_same_bytes(run):
    before = (run / "report.html").read_bytes()
    assert write_report(run).read_bytes() == before


def test_a_run_that_only_began_gets_a_partial_report(tmp_path):
    folder = tmp_path / "r"
    folder.mkdir()
    write_run_file(folder, PipelineConfig(), state="failed", detail="DataError: no.", stages={})
    html = report_of(folder)
    assert set(re.findall(r'<section id="(\w+)">', html)) == {"pipeline", "reproduce"}
    assert "This report is partial." in html
    assert "The run is failed. DataError: no." in html
    assert html.count('class="state not-yet"') == 8
    assert "no results on held-out prompts yet" in html
    assert 'class="notice bad"' in html


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("summary.json", {"resources"}),
        ("evaluation.json", {"change", "judges"}),
        ("samples.jsonl", {"texts"}),
        ("metrics/reward_model.jsonl", {"curves"}),
    ],
)
def test_a_missing_file_costs_its_part_only(copy, name, lost):
    (copy / name).unlink()
    html = report_of(copy)
    assert set(re.findall(r'<section id="(\w+)">', html)) == SECTIONS - lost
    assert f"{name} is not there yet" in html


@pytest.mark.parametrize("name", ["summary.json", "evaluation.json", "samples.jsonl"])
def test_a_damaged_file_is_reported_by_name(copy, name):
    (copy / name).write_text('{"half": ', encoding="utf-8")
    html = report_of(copy)
    assert f"{name} cannot be read" in html
    assert '<section id="pipeline">' in html


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(StoreError, match="there is no run"):
        write_report(tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


def test_the_stage_writes_the_files_that_the_report_reads():
    from flows.stages import evaluation

    assert (evaluation.RESULT, evaluation.SAMPLES) == (EVALUATION_NAME, SAMPLES_NAME)
