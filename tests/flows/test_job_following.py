"""A run and its Ray job in awkward moments: an order cut short, a log that cannot be read."""

import json
import os
import signal
import threading
import time

import pytest
from ailing_job_server import ailing_job_server

from alignment.cluster.jobs import JobServer
from alignment.config import PipelineConfig
from alignment.errors import AbsentClusterError, LostActorError
from flows import stage_jobs
from flows.interruption import interruptible
from flows.job_events import read_event, tell
from flows.manifest import StageRequest
from flows.run_record import RunOptions
from flows.running import running
from flows.stage_jobs import _call, _follow, _submit, _Told, do_as_job, stop_jobs_of
from flows.stages import sft

JOB = "a-job"


@pytest.fixture(autouse=True)
def _frequent_looks(monkeypatch):
    monkeypatch.setattr(stage_jobs, "_LOOK_S", 0.1)


@pytest.fixture
def config(tmp_path):
    run = {"name": "asks", "store": tmp_path / "store", "runs": tmp_path / "runs"}
    return PipelineConfig.model_validate({"model": {"source": "tiny"}, "run": run})


def test_an_order_that_is_cut_short_leaves_no_job(config):
    with ailing_job_server(known_after_s=1.5, answers_after_s=1.5) as ailing:
        cluster = config.cluster.model_copy(update={"job_server": ailing.url})
        config = config.model_copy(update={"cluster": cluster})
        stop = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT))
        request = StageRequest(stage="sft", stage_version=1)
        with running(config, RunOptions()) as run:
            stop.start()
            with pytest.raises(KeyboardInterrupt), interruptible():
                do_as_job(run, sft.train_sft, (), request)
        assert len(ailing.stopped) == 1


def test_jobs_of_a_run_are_found_by_whatever_way_its_folder_is_named(config, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with ailing_job_server() as ailing:
        named = [
            config.model_copy(
                update={
                    "run": config.run.model_copy(update={"runs": runs}),
                    "cluster": config.cluster.model_copy(update={"job_server": ailing.url}),
                }
            )
            for runs in (tmp_path / "runs", tmp_path / "link" / "runs")
        ]
        request = StageRequest(stage="sft", stage_version=1)
        with running(named[0], RunOptions()) as run:
            _submit(run, JobServer(ailing.url), JOB, _call(run, sft.train_sft, (), request))
        assert stop_jobs_of(named[1], before_s=0.5) == []  # began later
        other = named[1].model_copy(
            update={"run": named[1].run.model_copy(update={"name": "other"})}
        )
        assert stop_jobs_of(other, before_s=2.0) == []
        assert stop_jobs_of(named[1], before_s=2.0) == [JOB] == ailing.stopped
        assert stop_jobs_of(named[1], before_s=2.0) == []  # it has ended


@pytest.mark.parametrize(("state", "error"), [("SUCCEEDED", None), ("FAILED", AbsentClusterError)])
def test_a_log_that_cannot_be_read_does_not_undo_a_finished_stage(config, state, error):
    with ailing_job_server(state=state, log=None) as ailing, running(config, RunOptions()) as run:
        told = _Told(run, since_s=0.0)
        if error is None:
            _follow(JobServer(ailing.url), JOB, told)
        else:
            with pytest.raises(error):
                _follow(JobServer(ailing.url), JOB, told)


def test_the_last_lines_are_taken_once(config, monkeypatch):
    done = event("done", phases={"model_work": 1.0}, peak_pss_gib={}, warnings=["note"])
    log = "a page\x0cbreak\na line\u2028break\n" + done
    with (
        ailing_job_server(state="RUNNING", tails=[log], log=log) as ailing,
        running(config, RunOptions()) as run,
        run.clock.stage("sft"),
    ):
        told = _Told(run, since_s=0.0)
        ends = threading.Timer(1.5, setattr, (ailing, "state", "SUCCEEDED"))  # at the latest
        ends.start()
        take = told.take

        def take_and_end(line):
            take(line)
            if line.startswith("@alignflow"):
                ailing.state = "SUCCEEDED"

        monkeypatch.setattr(told, "take", take_and_end)
        _follow(JobServer(ailing.url), JOB, told)
        ends.cancel()
        assert run.clock.phase_s("model_work", "sft") == pytest.approx(1.0)


def test_a_job_that_died_without_a_word_is_told_with_its_last_lines(config):
    with (
        ailing_job_server(state="FAILED", log="Killed\n") as ailing,
        running(config, RunOptions()) as run,
        pytest.raises(LostActorError, match="ends with:\nKilled"),
    ):
        _follow(JobServer(ailing.url), JOB, _Told(run, since_s=0.0))


def event(kind, **content):
    return f"@alignflow {json.dumps({'kind': kind, 'at_s': time.time(), **content})}\n"


def test_of_a_joined_job_only_the_time_waited_for_it_counts(config):
    with running(config, RunOptions()) as run, run.clock.stage("sft"):
        told = _Told(run, since_s=time.time())
        phases = {"model_start": 100.0, "model_work": 900.0}
        told.take(event("done", phases=phases, peak_pss_gib={}, warnings=[]).rstrip("\n"))
        counted = run.clock.phase_s("model_start") + run.clock.phase_s("model_work")
        assert 0 < counted <= run.clock.wall_s()
        assert run.clock.phase_s("model_work") == pytest.approx(0.9 * counted)


def test_an_event_survives_what_is_printed_around_it_and_in_it(capsys):
    print("Loading: 50%", end="")
    tell("failed", message="a line\u2028and \x85 a file \udcff", error="DataError", trace="")
    (line,) = capsys.readouterr().out.splitlines()
    line.encode("ascii")
    found = read_event(line)
    assert found is not None
    assert found["message"] == "a line\u2028and \x85 a file \udcff"
    assert read_event("@alignflow [1, 2]") is None
    assert read_event('@alignflow {"a": 1}') is None
    assert read_event('said "@alignflow " to all') is None
