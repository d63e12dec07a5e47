"""Stages as Ray jobs on the services of `alignflow up`: same results, killed, stopped, refused."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from uuid import UUID

import pytest
from marked_processes import wait_until
from prefect.states import Cancelled
from services_of_a_test import Services

from flows.manifest import read_manifest
from flows.metrics_log import read_metrics
from flows.run_record import read_run

pytestmark = [pytest.mark.engines, pytest.mark.slow]

SMALL = "--set=cluster.object_store_gib=0.25"
FREE_WITHIN_S = 30.0
STEPS_AT_WORK = 75
"""So many that a job outlasts the start of another command on a busy machine."""


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    with beside_another_ray(), Services(tmp_path_factory.mktemp("services")) as running:
        yield running


@contextmanager
def beside_another_ray():
    """Somebody holds the port that Ray's agents take by default, without which no job begins."""
    with ExitStack() as stack:
        with suppress(OSError):  # then there is another Ray
            stack.enter_context(socket.create_server(("", 52365)))
        yield


def jobs(services):
    """State of every job that was submitted, by id, as Ray's own pages are told."""
    token = (services.store / "services" / "ray_token").read_text()
    request = urllib.request.Request(
        f"{services.told('ray_dashboard')}/api/jobs/", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        found = json.load(answer)
    return {job["submission_id"]: job["status"] for job in found if job["submission_id"]}


def start(services, name, *settings):
    """`alignflow run` with jobs, as a process."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "flows.cli", "run", "tiny", f"--set=run.name={name}", SMALL),
            f"--set=cluster.job_server={services.told('ray_dashboard')}",
            *(f"--set={setting}" for setting in settings),
        ],
        cwd=services.folder,
        env=services.environ
        | services.ray_token()
        | {"PREFECT_API_URL": services.told("prefect_api")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process, timeout_s=400):
    output, _ = process.communicate(timeout=timeout_s)
    return process.returncode, output


def digests(folder, name):
    """Digest of each stage's result, of what does not tell time."""
    run = read_run(folder / "runs" / name)
    found = {}
    for stage, record in run.stages.items():
        artifact = read_manifest(folder / "store" / "stages" / stage / record.key[:16])
        outputs = [o for o in artifact.outputs.values() if o.path != "metrics.jsonl"]
        found[stage] = sorted((output.path, output.sha256) for output in outputs)
    return found


@pytest.fixture(scope="module")
def as_jobs(services):
    """A whole run whose stages were jobs; gives its output."""
    code, output = finished(start(services, "jobs"))
    assert code == 0, output
    return output


def test_a_run_as_jobs_gives_what_a_run_in_process_gives(services, as_jobs, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "run", "tiny", SMALL],
        cwd=tmp_path,
        env=services.environ,
        text=True,
        capture_output=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert digests(services.folder, "jobs") == digests(tmp_path, "tiny")
    submitted = sorted(job.split("-")[1] for job in jobs(services))
    assert submitted == ["candidates", "evaluation", "ppo", "reward_model", "sft"]
    steps = read_metrics(services.folder / "runs" / "jobs" / "metrics" / "ppo.jsonl")
    assert [step["step"] for step in steps] == [1, 2]
    summary = json.loads((services.folder / "runs" / "jobs" / "summary.json").read_text())
    assert summary["timing"]["model_work_s"] > 0
    print(json.dumps(summary["timing"]))


def works_on_ppo(services, name):
    """Whether the run's PPO, in its job, has made three steps."""
    return len(read_metrics(services.folder / "runs" / name / "metrics" / "ppo.jsonl")) >= 3


def test_a_killed_run_joins_the_job_that_is_at_work(services, as_jobs):
    settings = (f"ppo.steps={STEPS_AT_WORK}",)
    process = start(services, "killed", *settings)
    wait_until(lambda: works_on_ppo(services, "killed"), 240)
    process.kill()
    process.communicate(timeout=60)
    (at_work,) = (job for job, state in jobs(services).items() if state == "RUNNING")
    code, output = finished(start(services, "killed", *settings))
    assert code == 0, output
    assert f"Ray job {at_work} is at work on this already and is joined" in output
    assert sum(job.startswith(at_work.removesuffix("-1")) for job in jobs(services)) == 1
    steps = read_metrics(services.folder / "runs" / "killed" / "metrics" / "ppo.jsonl")
    assert [step["step"] for step in steps] == list(range(1, STEPS_AT_WORK + 1))


def wait_until_everything_is_free(services):
    """Seconds until no role's, job's or flow run's process and no reservation is left."""
    began = time.monotonic()
    wait_until(lambda: not services.actors() and not services.job_processes(), 60)
    wait_until(lambda: not services.flow_processes(), 60)
    wait_until(lambda: services.processors_in_use() == 0, 60)
    return time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_stops_its_job(services, as_jobs, number):
    name = f"stopped-{int(number)}"
    process = start(services, name, f"ppo.steps={500 + number}")
    try:
        wait_until(lambda: works_on_ppo(services, name), 300)
        assert services.processors_in_use() > 0
        process.send_signal(number)
        assert wait_until_everything_is_free(services) < FREE_WITHIN_S
        code, output = finished(process, 30)
        assert code == 130, output
        assert "may still be at work" not in output
        assert "there is still" not in output
    finally:
        process.kill()


def submit(services, name, steps):
    """A run of the deployment, once its PPO is at work in a job; gives its id."""
    done = services.alignflow(
        *("submit", "tiny", f"--set=run.name={name}", SMALL, f"--set=ppo.steps={steps}"),
        f"--set=cluster.job_server={services.told('ray_dashboard')}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    wait_until(lambda: works_on_ppo(services, name), 240)
    return UUID(re.search(r"[0-9a-f-]{36}", done.stdout)[0])


def test_a_cancelled_flow_run_stops_its_job(services, as_jobs):
    run_id = submit(services, "cancelled", 501)
    done = services.prefect("flow-run", "cancel", str(run_id))
    assert done.returncode == 0, done.stdout + done.stderr
    assert wait_until_everything_is_free(services) < FREE_WITHIN_S
    services.wait_for_state(run_id, "Cancelled", timeout_s=60)
    assert "RUNNING" not in jobs(services).values()


def test_a_run_cancelled_without_a_process_has_its_job_stopped(services, as_jobs):
    run_id = submit(services, "orphan", 502)
    (process,) = services.flow_processes()
    os.kill(process, signal.SIGKILL)
    services.wait_for_state(run_id, "Crashed", timeout_s=60)
    services.ask(lambda client: client.set_flow_run_state(run_id, Cancelled(), force=True))
    assert services.job_processes()
    assert wait_until_everything_is_free(services) < FREE_WITHIN_S
    assert services.log("reconciler").count('"action": "job stopped"') == 1


def test_the_stages_own_error_reaches_the_operator(services, as_jobs):
    settings = ("cluster.policy.gpus_per_rank=1", "ppo.steps=3")
    code, output = finished(start(services, "too-few", *settings))
    assert code == 1
    said = output.partition("alignflow: ")[2]
    assert "GPU" in said, output
    assert "Traceback" not in output
    print(said)


def test_a_job_server_that_is_away_is_named(services):
    process = start(services, "away", "cluster.job_server=http://127.0.0.1:1", "ppo.steps=3")
    code, output = finished(process, 120)
    assert code == 1
    assert "job server http://127.0.0.1:1 (`cluster.job_server`) does not answer" in output


def test_a_wrong_token_is_named(services, tmp_path):
    (tmp_path / "token").write_text("0" * 64)
    services_token = services.ray_token
    services.ray_token = lambda: services_token() | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    try:
        code, output = finished(start(services, "token", "ppo.steps=3"), 120)
    finally:
        services.ray_token = services_token
    assert code == 1
    assert "RAY_AUTH_TOKEN_PATH" in output.partition("alignflow: ")[2], output
