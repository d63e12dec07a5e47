"""A stage asked for by another process: what it is told, what it refuses, what it answers."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from pydantic import ValidationError

from alignment.code_digest import code_digest, require_same_code
from alignment.config import ClusterConfig, PipelineConfig, RunConfig
from alignment.errors import AlignmentError, ClusterError, ModelError, StoreError
from flows import job_entry
from flows.job_entry import job_settings
from flows.job_events import read_event, tell
from flows.manifest import StageRequest
from flows.run_record import RunOptions
from flows.running import running
from flows.shared_store import open_store, read_note
from flows.stage_call import StageCall, function_name, inputs_as_json, inputs_at_hand
from flows.stage_jobs import _own_error, job_name
from flows.stages import base_model, data

SMALL = {"model": {"source": "tiny"}, "data": {"demonstrations": 4, "train_prompts": 4}}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked")
    run = {"name": "asked", "store": folder / "store", "runs": folder / "runs"}
    return PipelineConfig.model_validate({**SMALL, "run": run})


@pytest.fixture(scope="module")
def base(config):
    with running(config, RunOptions()) as run:
        return base_model.prepare_base_model(run)


def key_of_data(config, base):
    """The key under which this process would look the stage up."""
    with running(config, RunOptions()) as run:
        found = []

        def note(request):
            found.append(request.key)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            data.prepare_data(replace(run, elsewhere=note), base)
    return found[0]


def call_of(config, base, **changed):
    told = {
        "function": function_name(data.prepare_data),
        "inputs": inputs_as_json((base,)),
        "config": config.model_dump(mode="json"),
        "round": 1,
        "key": "0" * 64,
        "code": code_digest(),
        "folder": str(config.run.store.parent),
    }
    return StageCall(**told | changed)


def job(config, call):
    """What the process of a job tells and its exit code; no Ray, as the stage needs none."""
    store = open_store(config.run)
    store.write_note("jobs/one.json", call.as_json())
    done = subprocess.run(
        [sys.executable, "-m", "flows.job_entry", store.where, "jobs/one.json"],
        env=os.environ | {"RAY_ADDRESS": "192.0.2.1:1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    events = [event for line in done.stdout.splitlines() if (event := read_event(line))]
    assert events, done.stdout + done.stderr
    return events, done.returncode


def job_here(capsys, config, call):
    """The same without its process, which takes seconds for its imports alone."""
    store = open_store(config.run)
    store.write_note("jobs/one.json", call.as_json())
    capsys.readouterr()
    with patch.dict(os.environ, RAY_ADDRESS="192.0.2.1:1"), chdir("."):  # the job changes both
        code = job_entry.main([store.where, "jobs/one.json"])
    told = capsys.readouterr()
    return [event for line in told.out.splitlines() if (event := read_event(line))], code


def test_a_job_does_the_stage_and_puts_it_into_the_store(config, base):
    key = key_of_data(config, base)
    events, code = job(config, call_of(config, base, key=key))
    assert code == 0, events
    assert events[-1]["kind"] == "done"
    artifact = open_store(config.run).get("data", key)
    assert artifact is not None
    assert artifact.run == "asked"
    assert (config.run.runs / "asked" / "jobs" / "asked" / "run.json").exists()
    assert len(list((config.run.store / "runs").iterdir())) == 1  # a job is no run of its own


def test_another_key_is_refused_before_any_work(config, base):
    with (
        running(config, RunOptions()) as run,
        pytest.raises(
            ClusterError, match=r"data has key \w+ here and 1{16} where it was asked for"
        ),
    ):
        data.prepare_data(replace(run, expected_key="1" * 64), base)


def test_other_code_is_refused_before_any_work(config, base):
    open_store(config.run).write_note(
        "jobs/other.json",
        call_of(config, base, code="ab" * 32).as_json() | {"what_newer_code_says": 1},
    )
    done = subprocess.run(
        [sys.executable, "-m", "flows.job_entry", str(config.run.store), "jobs/other.json"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    event = read_event(done.stdout.splitlines()[-1])
    assert (event["kind"], event["error"]) == ("failed", "ClusterError")
    assert "has other code of alignflow (abababababab)" in event["message"]
    assert "to one commit" in event["message"]


def test_a_store_that_the_cluster_does_not_see_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"there is no jobs/x.json in the store .* `run.shared_s"):
        read_note(str(tmp_path), "jobs/x.json")


def test_inputs_are_found_again_in_their_order(config, base):
    store = open_store(config.run)
    told = json.loads(json.dumps(inputs_as_json((base, [base, base], None))))
    assert inputs_at_hand(store, told) == [base, [base, base], None]
    with pytest.raises(ClusterError, match="sft 0000000000000000, which the stage starts from"):
        inputs_at_hand(store, [{"stage": "sft", "key": "0" * 64}])


def test_only_stages_are_called():
    call = StageCall(
        function="os:system", inputs=[], config={}, round=1, key="", code="", folder=""
    )
    with pytest.raises(ClusterError, match="os:system is no stage"):
        call.stage()


def test_own_code_is_the_same_and_other_code_is_named():
    require_same_code(code_digest(), "policy rank 0")
    with pytest.raises(ClusterError, match=r"policy rank 0 has other code of alignflow \(cdcdcdcd"):
        require_same_code("cd" * 32, "policy rank 0")


def test_a_job_is_named_by_key_and_store():
    request = StageRequest(stage="sft", stage_version=1)
    name = job_name(request, "/store")
    assert name == job_name(replace(request), "/store")
    assert name.startswith(f"alignflow-sft-{request.key[:16]}-")
    assert name != job_name(replace(request, seed=1), "/store")
    assert name != job_name(request, "s3://bucket/store")


def test_a_job_works_on_its_own_cluster_in_a_folder_of_its_own():
    config = PipelineConfig(
        run=RunConfig(name="one", runs=Path("/runs"), loggers=("tensorboard",)),
        cluster=ClusterConfig(job_server="http://192.0.2.1:8265"),
    )
    own = job_settings(config, "192.0.2.1:6379")
    assert own.cluster.job_server is None
    assert own.cluster.address == "192.0.2.1:6379"
    assert own.run.runs == Path("/runs/one/jobs")
    assert own.run.loggers == ()
    assert own.run.name == "one"


def test_events_are_found_among_other_output(capsys):
    tell("progress", step=1, total=2, figures={"loss": 0.5})
    line = capsys.readouterr().out.rstrip("\n")
    event = read_event(line)
    assert (event["kind"], event["figures"]) == ("progress", {"loss": 0.5})
    assert read_event(line[:-3]) is None
    assert read_event("(TrainableActor pid=7) hello") is None


@pytest.mark.parametrize("kind", [ModelError, StoreError, ClusterError])
def test_a_stages_own_error_comes_back_as_it_was(kind):
    error = _own_error("job-1", {"error": kind.__name__, "message": "so it is", "trace": ""})
    assert type(error) is kind
    assert str(error) == "so it is"


def test_any_other_error_names_the_job_and_shows_where():
    failed = {"error": "ZeroDivisionError", "message": "division by zero", "trace": "line 7"}
    error = _own_error("job-1", failed)
    assert type(error) is ClusterError
    assert str(error) == "Ray job job-1 failed: ZeroDivisionError: division by zero\nline 7"
    assert isinstance(error, AlignmentError)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"address": "192.0.2.1:6379"},
            "`cluster.address` has no effect with `cluster.job_server`",
        ),
        ({"backend": "local"}, "`cluster.job_server` has no effect with"),
        ({"job_server": "192.0.2.1:8265"}, "accepted: http://host:port"),
        ({"job_server": "http://ada:secret@192.0.2.1:8265"}, "without user or password"),
    ],
)
def test_settings_that_contradict_jobs_are_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        ClusterConfig(**{"job_server": "http://192.0.2.1:8265"} | settings)


@pytest.fixture
def bucket(monkeypatch):
    """A bucket on a real S3 server, found by the environment."""
    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = ":".join(map(str, server.get_host_and_port()))
    for name, value in {
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": f"http://{address}",
    }.items():
        monkeypatch.setenv(name, value)
    files = fs.S3FileSystem(
        endpoint_override=address, scheme="http", region="us-east-1", allow_bucket_creation=True
    )
    files.create_dir("bucket")
    yield
    server.stop()


def test_with_s3_alone_the_job_works_on_a_store_of_its_own(config, base, bucket, tmp_path, capsys):
    """What another machine of a cluster has: its own disk, and the shared store."""
    shared = {"shared_store": "s3://bucket/store"}
    config = config.model_copy(update={"run": config.run.model_copy(update=shared)})
    store = open_store(config.run)
    assert store.at_hand("base_model", base.key) == base  # this publishes it
    here = config.run.store / "stages"
    shutil.rmtree(here / "data", ignore_errors=True)
    key = key_of_data(config, base)
    away = {"store": tmp_path / "store", "runs": tmp_path / "runs"}
    away_config = config.model_copy(update={"run": config.run.model_copy(update=away)})
    events, code = job_here(capsys, config, call_of(away_config, base, key=key))
    assert code == 0, events
    assert (tmp_path / "store" / "stages" / "base_model" / base.key[:16]).exists()
    assert not (here / "data").exists()
    artifact = store.at_hand("data", key)
    assert artifact is not None
    assert artifact.folder.is_relative_to(here)
