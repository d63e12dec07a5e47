"""A run's folder: its record, metrics, and how each kind of end is noted."""

import json

import pytest

from alignment.config import PipelineConfig, RunConfig
from alignment.errors import ConfigError, StoreError
from alignment.training.roles import MetricSink
from flows.manifest import StageRequest
from flows.metrics_log import JsonlMetrics, read_metrics
from flows.run_record import RunOptions, open_run, read_run
from flows.store import ArtifactStore
from flows.waiting import WaitingForPeople


class Clock:
    """Seconds that pass when told."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def config(tmp_path):
    return PipelineConfig(
        run=RunConfig(name="one", store=tmp_path / "store", runs=tmp_path / "runs")
    )


def make_artifact(config, text="out", metrics_lines=None):
    store = ArtifactStore(config.run.store)
    request = StageRequest(stage="sft", stage_version=1, settings={"text": text})
    with store.open_stage(request, run="other") as workspace:
        workspace.output("out").write_text(text)
        names = ["out"]
        if metrics_lines:
            workspace.output("metrics.jsonl").write_text(metrics_lines)
            names.append("metrics.jsonl")
        return workspace.commit(outputs=names)


def test_finished_run_keeps_configuration_and_stages(config):
    artifact = make_artifact(config)
    with open_run(config, RunOptions(command="alignflow run x")) as record:
        record.begin_stage("sft", artifact.key, "never run")
        assert read_run(record.folder).state == "running"
        assert read_run(record.folder).stages["sft"].state == "working"
        record.finish_stage(artifact, reused=False)
    kept = read_run(record.folder)
    assert kept.state == "done"
    assert kept.ended is not None
    assert kept.command == "alignflow run x"
    assert kept.config == config.model_dump(mode="json")
    assert kept.store == str(config.run.store)
    assert kept.stages["sft"].finished_key == artifact.key
    assert kept.stages["sft"].reason == "never run"


def test_key_of_the_last_finish_survives_a_new_attempt(config):
    artifact = make_artifact(config)
    with open_run(config, RunOptions()) as record:
        record.finish_stage(artifact, reused=False)
    with pytest.raises(ZeroDivisionError):
        _begin_and_fail(config)
    with open_run(config, RunOptions()) as record:
        assert record.finished_key("sft") == artifact.key
        assert record.finished_key("ppo") is None


def test_reused_stage_says_whose_result_it_is(config):
    artifact = make_artifact(config)
    with open_run(config, RunOptions()) as record:
        record.finish_stage(artifact, reused=True)
    kept = read_run(record.folder).stages["sft"]
    assert kept.state == "reused"
    assert "equal those of run other, made 20" in kept.reason


def _begin_and_fail(config):
    with open_run(config, RunOptions()) as record:
        record.begin_stage("sft", "f" * 64, "redone")
        raise ZeroDivisionError("division")


@pytest.mark.parametrize(
    ("error", "state", "has_log"),
    [
        (ConfigError("bad setting"), "failed", True),
        (WaitingForPeople("3 of 9"), "waiting", False),
        (KeyboardInterrupt(), "interrupted", False),
        (SystemExit(15), "interrupted", False),
    ],
)
def test_each_end_is_noted_and_goes_on(config, error, state, has_log):
    with pytest.raises(type(error)), open_run(config, RunOptions()):
        raise error
    folder = config.run.runs / "one"
    assert read_run(folder).state == state
    log = folder / "error.log"
    assert log.exists() == has_log
    if has_log:
        assert "bad setting" in log.read_text()
        assert "Traceback" in log.read_text()
        assert "bad setting" in read_run(folder).detail


def test_second_process_on_the_same_run_is_refused(config):
    with (
        open_run(config, RunOptions()),
        pytest.raises(StoreError, match=r"run one is being worked on by process"),
        open_run(config, RunOptions()),
    ):
        pass
    assert read_run(config.run.runs / "one").state == "done"


def test_damaged_record_is_named(config):
    with open_run(config, RunOptions()) as record:
        pass
    (record.folder / "run.json").write_text("{")
    with (
        pytest.raises(StoreError, match=r"run\.json cannot be read"),
        open_run(config, RunOptions()),
    ):
        pass


def test_metrics_are_dropped_for_another_key_only(config):
    with open_run(config, RunOptions()) as record:
        record.begin_stage("ppo", "a" * 64, "never run")
        record.metrics("ppo").record(1, {"loss": 1.0})
        record.begin_stage("ppo", "a" * 64, "resumed")
        assert len(read_metrics(record.metrics_path("ppo"))) == 1
        record.begin_stage("ppo", "b" * 64, "redone")
        assert read_metrics(record.metrics_path("ppo")) == []


def test_reused_stage_brings_its_metrics(config):
    artifact = make_artifact(config, metrics_lines='{"step": 1, "wall_s": 0.5, "loss": 2.0}\n')
    with open_run(config, RunOptions()) as record:
        record.finish_stage(artifact, reused=True)
    assert read_metrics(record.metrics_path("sft")) == [{"step": 1, "wall_s": 0.5, "loss": 2.0}]
    assert read_run(record.folder).stages["sft"].state == "reused"


def test_metrics_lines(tmp_path):
    clock = Clock()
    sink: MetricSink = JsonlMetrics(tmp_path / "m" / "ppo.jsonl", now=clock)
    clock.seconds = 1.5
    sink.record(1, {"loss": 0.25})
    clock.seconds = 2.0
    sink.record(2, {"loss": float("inf")})
    lines = (tmp_path / "m" / "ppo.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "wall_s": 1.5, "loss": 0.25},
        {"step": 2, "wall_s": 2.0, "loss": None},
    ]


def test_resumed_metrics_go_on_and_repeat_steps(tmp_path):
    path = tmp_path / "ppo.jsonl"
    path.write_text(
        '{"step": 1, "wall_s": 10.0, "loss": 1.0}\n'
        '{"step": 2, "wall_s": 20.0, "loss": 2.0}\n'
        '{"step": 3, "wall'  # killed while writing
    )
    clock = Clock()
    sink = JsonlMetrics(path, now=clock)
    clock.seconds = 5.0
    sink.record(2, {"loss": 2.5})
    assert read_metrics(path) == [
        {"step": 1, "wall_s": 10.0, "loss": 1.0},
        {"step": 2, "wall_s": 25.0, "loss": 2.5},
    ]


def test_no_metrics_file_is_no_steps(tmp_path):
    assert read_metrics(tmp_path / "none.jsonl") == []
