"""Real Prefect: the private server of a run, its end in every case, and a suspended deployment."""

import os
import signal
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path

import pytest
from marked_processes import MARK, marked_processes, wait_until_no_process_is_left

from alignment.errors import StoreError
from flows.environment import NO_TELEMETRY, PRIVATE_SERVER
from flows.prefect_server import PrivateServer, prefect_api

pytestmark = pytest.mark.engines

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One Prefect database for all tests: a new one is migrated, which takes long."""
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture
def environ(home, monkeypatch):
    """The environment of a run, with a mark by which its processes are found again."""
    settings = {
        **NO_TELEMETRY,
        **PRIVATE_SERVER,
        "PREFECT_HOME": str(home),
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "storage"),
        "PYTHONPATH": str(HERE),
        MARK: uuid.uuid4().hex,
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return settings


SCRIPT = """
    import sys
    from pathlib import Path
    from flows.prefect_server import prefect_api, without_heartbeats

    with prefect_api(Path(sys.argv[1])) as server:
        from prefect import flow

        @flow
        def inner(value):
            return value + 1

        @flow
        def outer():
            return inner(1) + inner(2)

        server.wait_until_ready()
        with without_heartbeats():
            result = outer()
            print(result, outer(), flush=True)
        if sys.argv[2] == "hold":
            sys.stdin.readline()
"""


def start_script(home, end, script=SCRIPT):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(home), end],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_flows_run_and_nothing_is_left(home, environ):
    process = start_script(home, "end")
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert output == "5 5\n"
    assert (home / "prefect.db").stat().st_size > 0
    wait_until_no_process_is_left(environ[MARK])


INTERRUPTED = """
    import os, signal, sys
    from pathlib import Path
    from types import SimpleNamespace
    from flows.interruption import interruptible
    from flows.prefect_server import prefect_api, without_heartbeats

    with prefect_api(Path(sys.argv[1])) as server:
        import prefect.task_engine
        from prefect import flow
        from flows.stage_tasks import stage_task

        create = prefect.task_engine._create_task_run_locally

        def terminated(*arguments, **named):
            os.kill(os.getpid(), signal.SIGTERM)
            return create(*arguments, **named)

        def a_stage(run):
            print("was begun", flush=True)

        @flow
        def outer():
            options = SimpleNamespace(dashboard=None)
            stage_task(a_stage)(SimpleNamespace(options=options, stop_if_only=print))

        prefect.task_engine._create_task_run_locally = terminated
        server.wait_until_ready()
        try:
            with interruptible(), without_heartbeats():
                outer()
        except KeyboardInterrupt:
            print("interrupted", flush=True)
"""


def test_a_termination_while_a_task_is_created_is_an_interruption(home, environ):
    process = start_script(home, "end", script=INTERRUPTED)
    output, errors = process.communicate(timeout=300)
    assert output == "interrupted\n", errors
    wait_until_no_process_is_left(environ[MARK])


def test_killed_run_takes_its_server_along(home, environ):
    process = start_script(home, "hold")
    assert process.stdout.readline() == "5 5\n"
    assert len(marked_processes(environ[MARK])) == 2
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until_no_process_is_left(environ[MARK])


def test_server_that_ends_at_once_shows_its_log(tmp_path, environ, monkeypatch):
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "nonsense://nowhere")
    server = PrivateServer(tmp_path)
    try:
        with pytest.raises(StoreError, match="private Prefect server ended with code") as error:
            server.wait_until_ready()
        assert "nonsense" in str(error.value)
    finally:
        server.stop()


def test_server_that_does_not_answer_is_given_up(home, environ):
    server = PrivateServer(home)
    try:
        with pytest.raises(StoreError, match="did not answer within 0 s"):
            server.wait_until_ready(timeout_s=0.01)
    finally:
        server.stop()
    wait_until_no_process_is_left(environ[MARK])


def test_the_users_own_server_is_used(tmp_path, environ, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    with prefect_api(tmp_path / "unused") as server:
        assert server is None
        assert os.environ["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
    assert not (tmp_path / "unused").exists()


DEPLOY = """
    import sys
    from gated_flow import gated_flow
    from prefect.deployments import run_deployment

    gated_flow.to_deployment("waiting-test").apply()
    run = run_deployment(
        "gated-flow/waiting-test", parameters={"folder": sys.argv[1]}, timeout=0, as_subflow=False
    )
    print(run.id)
"""

STATE = """
    import sys
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        print(client.read_flow_run(sys.argv[1]).state.name)
"""

RESUME = """
    import sys
    from uuid import UUID
    from prefect.flow_runs import resume_flow_run

    answer = {"labels_digest": "0" * 64, "rankings": 2}
    resume_flow_run(UUID(sys.argv[1]), run_input=answer)
"""


def in_process(code, *arguments):
    """Run code beside this process, as a worker or the label service would; gives its output."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def execute(run_id):
    """What a worker does for a scheduled run; gives the state in which it left it."""
    subprocess.run(
        [sys.executable, "-m", "prefect.engine"],
        env=os.environ | {"PREFECT__FLOW_RUN_ID": run_id},
        cwd=HERE,
        check=True,
        timeout=120,
        capture_output=True,
    )
    return in_process(STATE, run_id)


@pytest.mark.slow
def test_deployed_run_is_suspended_until_people_have_ranked(home, environ, tmp_path):
    def log():
        return (tmp_path / "log").read_text().split()

    with prefect_api(home) as server:
        server.wait_until_ready()
        (tmp_path / "done").write_text("1")
        run_id = in_process(DEPLOY, str(tmp_path))
        assert execute(run_id) == "Suspended"
        assert log() == ["stage"]
        in_process(RESUME, run_id)  # too early: it must suspend again, not fail
        assert execute(run_id) == "Suspended"
        assert not (tmp_path / "frozen").exists()
        (tmp_path / "done").write_text("2")
        in_process(RESUME, run_id)
        assert execute(run_id) == "Completed"
        assert log() == ["stage", "stage", "stage", "digest"]
    wait_until_no_process_is_left(environ[MARK])


def test_run_without_a_deployment_stops_and_tells(home, environ, tmp_path):
    (tmp_path / "done").write_text("1")
    code = """
        import sys
        from gated_flow import gated_flow
        from flows.waiting import WaitingForPeople

        try:
            gated_flow(sys.argv[1])
        except WaitingForPeople as waiting:
            print(waiting)
    """
    with prefect_api(home) as server:
        server.wait_until_ready()
        assert "1 of 2 rankings of round r1" in in_process(code, str(tmp_path))
