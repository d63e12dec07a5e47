"""The report on the reward's monitors, and the file of texts behind it."""

import json
import shutil
from pathlib import Path

import pytest
from report_fixture import write_run

from alignment.rewards.alarms import Alarm
from flows.alarms import SUSPICIOUS_NAME, AlarmLog, read_suspicious
from flows.metrics_log import JsonlMetrics, read_metrics
from flows.report import write_report

TEXT = {
    "prompt": "Why?",
    "response": "<b>so so so</b>",
    "score": 2.5,
    "by_source": {"trained": 2.5},
    "tokens": 9,
    "repetition": 0.5,
}


def alarm(step: int, *, is_new: bool = True) -> Alarm:
    return Alarm(step=step, monitor="repetition", reading=0.25, is_new=is_new, texts=[TEXT])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "watched"
    write_run(folder, prompts=4)
    return folder


def test_alarms_are_said_once_and_kept_with_their_texts(tmp_path: Path) -> None:
    said: list[str] = []
    log = AlarmLog(tmp_path / SUSPICIOUS_NAME, said.append)
    log(alarm(4))
    log(alarm(5, is_new=False))
    assert len(said) == 1
    assert "alarm at step 4: responses repeat themselves (reading 0.25)" in said[0]
    lines = read_suspicious(log.path)
    assert [line["step"] for line in lines] == [4, 5]
    assert lines[0] == {"step": 4, "monitor": "repetition", "reading": 0.25, **TEXT}


def test_a_resumed_training_drops_what_it_repeats_and_half_a_line(tmp_path: Path) -> None:
    log = AlarmLog(tmp_path / SUSPICIOUS_NAME, lambda _: None)
    for step in (3, 4, 5):
        log(alarm(step))
    with log.path.open("a") as file:
        file.write('{"step": 6, "moni')
    AlarmLog(log.path, lambda _: None, after_step=4)
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [3, 4]


def test_report_shows_monitors_sources_and_texts_as_text(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "copy"))
    path = folder / "metrics" / "ppo.jsonl"
    rows = read_metrics(path)
    path.unlink()
    sink = JsonlMetrics(path)
    for row in rows:
        on = float(row["step"] == 2)
        sink.record(
            row["step"],
            {name: value for name, value in row.items() if "/" in name}
            | {"ppo/repetition_reading": 0.25 * on, "ppo/alarm_repetition": on}
            | {"ppo/score_of_trained": 1.0, "ppo/score_of_brevity": -2.0},
        )
    AlarmLog(folder / SUSPICIOUS_NAME, lambda _: None)(alarm(2))
    html = write_report(folder).read_text()
    section = html.partition('<section id="alarms">')[2].partition("</section>")[0]
    assert "responses repeat themselves" in section
    assert "1: 2" in section
    assert "changed their length" not in section  # that one could not say anything yet
    assert "&lt;b&gt;so so so&lt;/b&gt;" in section
    assert "<b>so so so" not in section
    assert "mean score by `brevity`, before its weight" in html


def test_a_run_that_was_not_watched_has_no_such_section(run: Path) -> None:
    assert 'id="alarms"' not in write_report(run).read_text()
