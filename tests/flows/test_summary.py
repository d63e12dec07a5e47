"""The summary's schema, the clock behind its timing, and the memory sampler."""

import os
import subprocess
import sys
import time

import pytest
from pydantic import ValidationError
from summary_records import make_summary, make_target, make_timing

from alignment.config import load_config
from alignment.errors import StoreError
from flows.memory import MemorySampler, system_memory_gib, system_used_kib
from flows.summary import (
    StageTiming,
    Versions,
    memory_of,
    read_summary,
    timing_of,
    write_summary,
)
from flows.timing import WorkClock
from flows.versions import why_not_loaded


def test_summary_is_read_as_written(tmp_path):
    summary = make_summary()
    path = write_summary(tmp_path, summary)
    assert path.name == "summary.json"
    assert read_summary(tmp_path) == summary


def test_unfinished_run_has_no_summary(tmp_path):
    with pytest.raises(StoreError, match="has not finished"):
        read_summary(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        '"schema_version": 1|"schema_version": 2',
        '"ray": "2",|',
        '"seed": 0,|"seed": -1,',
        '"pid": 12|"pid": 0',
        '"run": "one"|"run": "one", "surprise": 1',
    ],
)
def test_summary_that_breaks_the_schema_is_refused(tmp_path, change):
    path = write_summary(tmp_path, make_summary())
    old, new = change.split("|")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(StoreError, match="does not follow the schema"):
        read_summary(tmp_path)


def test_an_engine_that_was_loaded_has_no_reason_for_its_absence():
    loaded = {"ray": "2", "vllm": "0", "deepspeed": "0", "prefect": "3"}
    versions = Versions(**loaded, gradio=None, not_loaded={"gradio": "nobody ranked"})
    assert versions.not_loaded == {"gradio": "nobody ranked"}
    with pytest.raises(ValidationError, match="gives a reason for gradio: not absent"):
        Versions(**loaded, gradio="6", not_loaded={"gradio": "nobody ranked"})


@pytest.mark.parametrize(
    ("engine", "overrides", "reason"),
    [
        ("gradio", [], "the simulated panel ranks through the label service's store"),
        ("gradio", ["preferences.source=people"], "served by another command"),
        (
            "gradio",
            ["preferences.source=imported", "data.source=hh-rlhf", "data.path=a"],
            "came with the data",
        ),
        ("vllm", ["cluster.backend=local"], "held by this process"),
        ("vllm", [], "no stage of this run recorded"),
    ],
)
def test_an_absent_engine_is_explained(engine, overrides, reason):
    assert reason in why_not_loaded(load_config([], overrides), engine)


@pytest.mark.parametrize(
    "overrides",
    [
        {"value": float("nan")},
        {"value": float("inf")},
        {"low": None},
        {"high": None},
        {"low": 0.2, "high": 0.1},
        {"n": -1},
    ],
)
def test_target_has_a_finite_value_and_a_whole_interval(overrides):
    with pytest.raises(ValidationError):
        make_target(**overrides)


def test_target_may_have_no_interval():
    assert make_target(low=None, high=None).low is None


def test_orchestration_is_the_rest_of_the_wall_time():
    with pytest.raises(ValidationError, match="orchestration_s"):
        make_timing(orchestration_s=14.0)


class Clock:
    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


def test_clock_splits_wall_time_by_stage_and_phase():
    now = Clock()
    clock = WorkClock(now)
    now.seconds += 1
    for _ in range(2):
        with clock.stage("sft"):
            now.seconds += 2
            with clock.phase("model_start"):
                now.seconds += 10
            with clock.phase("model_work"):
                now.seconds += 20
    with clock.stage("ppo"), clock.phase("model_work"):
        now.seconds += 5
    with clock.phase("waiting_for_people"):
        now.seconds += 50
    timing = timing_of(clock, reused=("ppo",))
    assert timing.wall_s == 1 + 2 * 32 + 5 + 50
    assert timing.model_start_s == 20
    assert timing.model_work_s == 45
    assert timing.waiting_for_people_s == 50
    assert timing.orchestration_s == 5
    assert timing.stages["sft"] == StageTiming(wall_s=64, model_start_s=20, model_work_s=40)
    assert timing.stages["ppo"] == StageTiming(wall_s=5, model_work_s=5, reused=True)


def test_clock_counts_a_failed_stage_and_refuses_nesting():
    now = Clock()
    clock = WorkClock(now)
    with pytest.raises(ZeroDivisionError):
        _fail_after(clock, now, 3)
    assert clock.stages_s() == {"sft": 3}
    assert clock.phase_s("model_work") == 3
    with clock.stage("a"), pytest.raises(RuntimeError, match="inside stage a"), clock.stage("b"):
        pass
    with (
        clock.phase("model_work"),
        pytest.raises(RuntimeError, match="inside phase"),
        clock.phase("model_start"),
    ):
        pass


def _fail_after(clock, now, seconds):
    with clock.stage("sft"), clock.phase("model_work"):
        now.seconds += seconds
        raise ZeroDivisionError


HOLDER = "import sys; block = b'x' * (200 << 20); print('held', flush=True); sys.stdin.readline()"


def test_sampler_sees_a_process_and_keeps_its_peak():
    with MemorySampler(period_s=0.05) as sampler:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "held\n"
        sampler.watch("policy-0", process.pid)
        _wait_for(lambda: sampler.report().peak_pss_gib.get("policy-0", 0) > 0.15)
        process.communicate("\n")
        seen = sampler.report().samples
        _wait_for(lambda: sampler.report().samples >= seen + 2)
    report = sampler.report()
    assert 0.19 < report.peak_pss_gib["policy-0"] < 0.4
    assert 0 < report.start_gib < system_memory_gib()
    assert memory_of(report).peak_pss_gib == report.peak_pss_gib


def test_rise_is_the_highest_use_minus_that_at_the_start():
    gib = 1 << 20
    readings = iter([2 * gib, 3 * gib, 7 * gib, 4 * gib])
    with MemorySampler(period_s=0.01, used_kib=lambda: next(readings, gib)) as sampler:
        _wait_for(lambda: sampler.report().samples > 4)
    assert sampler.report().start_gib == 2
    assert sampler.report().peak_rise_gib == 5


def test_system_use_is_what_the_kernel_says():
    assert 0 < system_used_kib() < system_memory_gib() * (1 << 20)


def test_sampler_stops_with_its_block():
    with MemorySampler(period_s=0.01) as sampler:
        sampler.watch("self", os.getpid())
        _wait_for(lambda: sampler.report().samples > 2)
    samples = sampler.report().samples
    time.sleep(0.05)
    assert sampler.report().samples == samples


def _wait_for(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
