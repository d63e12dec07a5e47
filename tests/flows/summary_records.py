"""Summaries for tests of the schema, of the results table and of the commands."""

from flows.summary import (
    Actor,
    Check,
    Memory,
    StageTiming,
    Summary,
    Target,
    Timing,
    Versions,
    this_machine,
)


def make_timing(**overrides):
    values = {
        "wall_s": 100.0,
        "model_start_s": 20.0,
        "model_work_s": 60.0,
        "waiting_for_people_s": 5.0,
        "orchestration_s": 15.0,
        "stages": {"sft": StageTiming(wall_s=40.0, model_work_s=30.0)},
    }
    return Timing(**(values | overrides))


def make_target(**overrides):
    values = {"value": 0.1, "n": 56, "low": 0.03, "high": 0.15, "seed": 0, "command": "alignflow"}
    return Target(**(values | overrides))


def make_summary(**overrides):
    values = {
        "run": "one",
        "command": "alignflow run quickstart",
        "finished": "2026-01-01T00:00:00+00:00",
        "seed": 0,
        "simulated_labels": True,
        "targets": {"gain/gold": make_target()},
        "checks": {"all_finite": Check(passed=True, detail="70 values")},
        "versions": Versions(ray="2", vllm="0", deepspeed=None, prefect="3", gradio=None),
        "actors": (Actor(role="policy", rank=0, pid=12, engine="DeepSpeedEngine", steps=14),),
        "timing": make_timing(),
        "memory": Memory(
            period_s=1.0, samples=100, start_gib=1.0, peak_rise_gib=9.5, peak_pss_gib={"policy": 2}
        ),
        "machine": this_machine(),
        "reused": ("data",),
    }
    return Summary(**(values | overrides))
