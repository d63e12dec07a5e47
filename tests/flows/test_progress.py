"""What a run prints: plain lines in a file, redrawn lines on a terminal."""

import io

import pytest
from rich.console import Console
from summary_records import make_summary, make_target, make_timing

from flows.progress import Progress, duration
from flows.results import print_results
from flows.summary import Check


class Clock:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


def make_console(width=200, terminal=False):
    return Console(
        file=io.StringIO(), width=width, force_terminal=terminal, color_system=None, highlight=False
    )


def lines_of(console):
    return console.file.getvalue().splitlines()


def test_plain_lines_come_at_begin_end_and_intervals_only(clock):
    console = make_console()
    with Progress(console, interval_s=10, now=clock) as progress, progress.stage("ppo") as line:
        progress.note("redone: seed 0 -> 1")
        for step in range(1, 101):
            clock.seconds += 1
            progress.advance(step, 100, "step", kl_nats=0.12345)
        line.done("100 steps")
    lines = lines_of(console)
    assert len(lines) == 1 + 10 + 1
    assert "redone: seed 0 -> 1" in lines[0]
    assert lines[1].split() == [
        *("●", "ppo", "10.0", "s", "step", "10/100", "1", "step/s"),
        *("ETA", "1m30s", "kl_nats", "0.1235"),
    ]
    assert lines[-1].split() == ["✓", "ppo", "1m40s", "100", "steps"]


def test_rate_counts_from_where_this_attempt_began(clock):
    console = make_console()
    with Progress(console, interval_s=0, now=clock) as progress, progress.stage("ppo"):
        progress.advance(40, 50, "step")
        clock.seconds += 8
        progress.advance(42, 50, "step")
    lines = lines_of(console)
    assert "ETA" not in lines[0]
    assert "step 42/50  4 s/step  ETA 32.0 s" in lines[1]


def test_failed_stage_is_marked(clock):
    console = make_console()
    with (
        pytest.raises(ZeroDivisionError),
        Progress(console, now=clock) as progress,
        progress.stage("sft"),
    ):
        raise ZeroDivisionError
    assert lines_of(console)[-1].split()[:2] == ["✗", "sft"]
    assert "ZeroDivisionError" in lines_of(console)[-1]


def test_waiting_for_people_between_stages_has_its_own_line(clock):
    console = make_console()
    with Progress(console, interval_s=0, now=clock) as progress:
        with progress.stage("candidates"):
            pass
        for done in range(3):
            clock.seconds += 60
            progress.advance(done, 2, "ranking")
        with progress.stage("preferences"):
            pass
    waiting = [line for line in lines_of(console) if "waiting" in line]
    assert len(waiting) == 3
    assert "ranking 2/2" in waiting[-1]
    assert waiting[-1].startswith("✓")


def test_terminal_shows_every_stage_and_keeps_what_is_said(clock):
    console = make_console(width=60, terminal=True)
    with Progress(console, now=clock) as progress:
        with progress.stage("sft") as line:
            line.done("reused")
        with progress.stage("ppo"):
            progress.say("rank at [http://127.0.0.1:1]")
            progress.advance(1, 2, "step", figure=1.0, other_figure=2.0, third_figure=3.0)
    text = console.file.getvalue()
    assert "rank at [http://127.0.0.1:1]" in text
    last = text.split("rank at")[-1]
    assert "✓ sft" in last
    assert "✓ ppo" in last


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1m00s"), (119.7, "2m00s"), (3720, "1h02m")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_summary_for_people(tmp_path):
    console = make_console()
    summary = make_summary(
        targets={
            "sft/gold": make_target(value=0.61),
            "ppo/gold": make_target(value=0.71),
            "gain/gold": make_target(value=0.1),
            "ppo/kl_nats": make_target(value=1.6, unit="nats"),
            "reward_model/accuracy": make_target(value=0.77, n=807, low=None, high=None),
        },
        checks={"kl": Check(passed=False, detail="9 nats, budget 8")},
        timing=make_timing(),
    )
    print_results(console, summary, tmp_path / "report.html")
    text = console.file.getvalue()
    rows = {row[0]: row for row in map(cells_of, text.splitlines()) if row}
    assert rows["gold"] == ["gold", "0.61", "0.71", "+0.1 [+0.03, +0.15]", "56"]
    assert rows["kl_nats"] == ["kl_nats", "", "1.6 nats", "", "56"]
    assert rows["reward_model/accuracy"] == ["reward_model/accuracy", "0.77", "", "807"]
    assert "SIMULATED" in text
    assert "FAILED kl: 9 nats, budget 8" in text
    assert "orchestration 15.0 s" in text
    assert "reused   data" in text
    assert "report.html" in text
    assert summary.command in text


def cells_of(line):
    return [cell.strip() for cell in line.split("│")[1:-1]]


def test_people_are_not_called_simulated():
    console = make_console()
    print_results(console, make_summary(simulated_labels=False), None)
    assert "SIMULATED" not in console.file.getvalue()
