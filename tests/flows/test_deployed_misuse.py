"""What an operator may do wrong with deployed runs: a clear message, and the right command works.

One server that asks for a user and password; the reconciler looks once an hour, so that here
`alignflow resume` alone resumes. Roles are held by the flow's process: no engine is needed.
"""

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import pytest
from services_of_a_test import TINY_PEOPLE, Services

from flows.stages.preferences import label_store_path
from labeling_ui.store import LabelStore

pytestmark = [pytest.mark.engines, pytest.mark.slow]
AUTH = {
    "PREFECT_SERVER_API_AUTH_STRING": "admin:right",
    "PREFECT_API_AUTH_STRING": "admin:right",
}


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    folder = tmp_path_factory.mktemp("misuse")
    with Services(folder, "--no-ray", "--tick-s", "3600", environ=AUTH) as running:
        yield running


def submit(services, name, **changed):
    """Id of a started run."""
    settings = TINY_PEOPLE | {"run": {"name": name}, "cluster": {"backend": "local"}} | changed
    words = [
        f"--set={section}.{field}={json.dumps(value)}"
        for section, fields in settings.items()
        for field, value in fields.items()
    ]
    done = services.alignflow("submit", "tiny", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return UUID(re.search(r"[0-9a-f-]{36}", done.stdout)[0])


def suspended_run(services, name, **changed):
    run_id = submit(services, name, **changed)
    services.wait_for_state(run_id, "Suspended")
    while services.flow_processes():
        pass
    return run_id


def rank(services):
    """Ranks the open round through the label service; gives its id."""
    with LabelStore.open(label_store_path(services.store)) as labels:
        (open_round,) = (r.round_id for r in labels.rounds() if r.rankings_done < r.rankings_wanted)
        while card := labels.claim(open_round, "ada"):
            tiers = range(len(card.responses))
            labels.submit(card.assignment_id, "ada", submission_id=uuid4().hex, tiers=tiers)
        return open_round


def test_a_wrong_password_is_told_apart_from_none(services):
    right = services.environ["PREFECT_API_AUTH_STRING"]
    try:
        services.environ["PREFECT_API_AUTH_STRING"] = "admin:wrong"
        wrong = services.alignflow("resume")
        del services.environ["PREFECT_API_AUTH_STRING"]
        none = services.alignflow("resume")
    finally:
        services.environ["PREFECT_API_AUTH_STRING"] = right
    assert wrong.returncode == none.returncode == 1
    assert "a wrong or expired one" in wrong.stderr
    assert "given none" in none.stderr
    assert "PREFECT_API_AUTH_STRING" in none.stderr
    assert services.alignflow("resume").stdout.strip() == "no run is suspended"


def test_another_label_set_is_refused_and_the_right_one_taken(services):
    run_id = suspended_run(services, "sets")
    waiting = services.alignflow("resume", "sets")
    assert waiting.returncode == 75
    assert "0 of 3 rankings" in waiting.stdout
    round_id = rank(services)
    other = services.alignflow("resume", "sets", "--labels", "0" * 64)
    assert other.returncode == 1
    assert "its rankings are not frozen yet" in other.stderr or "its frozen set is" in other.stderr
    assert "Leave --labels out" in other.stderr
    assert services.wait_for_state(run_id, "Suspended")

    # Somebody who asks the server itself: the body sees it, trains nothing and waits again.
    answer = {"labels_digest": "0" * 64, "rankings": 3}
    services.ask(lambda client: client.resume_flow_run(run_id, run_input=answer))
    services.wait_for_state(run_id, "Running", "Pending", "Scheduled", "Resuming")
    services.wait_for_state(run_id, "Suspended")
    assert services.starts(run_id) == 2
    with LabelStore.open(label_store_path(services.store)) as labels:
        digest = labels.progress(round_id).frozen_digest
    right = services.alignflow("resume", "sets", "--labels", digest)
    assert f"resumed with 3 rankings, label set {digest}" in right.stdout, right.stderr
    services.wait_for_state(run_id, "Completed")
    assert services.starts(run_id) == 3


def test_of_two_resumes_at_once_one_resumes(services):
    run_id = suspended_run(services, "twice", run={"name": "twice", "seed": 1})
    rank(services)
    with ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda _: services.alignflow("resume", "twice"), range(2)))
    told = [done.stdout for done in both]
    assert sum("resumed with 3 rankings" in one for one in told) == 1, told
    assert any("not resumed" in one or "does not wait" in one for one in told), told
    services.wait_for_state(run_id, "Completed")
    assert services.starts(run_id) == 2


def test_second_run_of_a_configuration_is_refused_while_the_first_works(services):
    name = {"name": "same", "seed": 2}
    first = suspended_run(services, "same", run=name)
    second = suspended_run(services, "same", run=name)
    rank(services)
    services.alignflow("resume")
    ended = [
        services.wait_for_state(run_id, "Completed", "Failed", while_not=())
        for run_id in (first, second)
    ]
    refused = [run for run in ended if run.state.name == "Failed"]
    for run in refused:
        assert "run same" in run.state.message
        assert "is being worked on by process" in run.state.message
    assert len(refused) < 2
    third = submit(services, "same", run=name)
    services.wait_for_state(third, "Completed")


def test_stage_alone_needs_those_before_it(services):
    words = ["--set=cluster.backend=local", "--set=run.name=alone", "--set=run.seed=7"]
    done = services.alignflow("submit", "tiny", "--stage", "sft", *words)
    run_id = UUID(re.search(r"[0-9a-f-]{36}", done.stdout)[0])
    failed = services.wait_for_state(run_id, "Failed", while_not=())
    assert "sft alone was asked for, but" in failed.state.message
    assert "is not in" in failed.state.message
    unknown = services.alignflow("submit", "tiny", "--stage", "dpo")
    assert unknown.returncode == 1
    assert "accepted: base_model, data, sft" in unknown.stderr


def test_second_up_starts_nothing(services):
    before = services.record()
    again = services.alignflow("up")
    assert again.returncode == 0
    assert "already running" in again.stdout
    assert services.record()["services"] == before["services"]


def test_server_that_is_away_is_named(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "resume"],
        cwd=tmp_path,
        env=Services(tmp_path).environ | {"PREFECT_API_URL": "http://127.0.0.1:9/api"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "http://127.0.0.1:9/api does not answer" in done.stderr
    assert "nothing was lost" in done.stderr
