"""A run of the deployment as its operator lives it: started, suspended, ranked, resumed, seen."""

import json
import re
import signal
import subprocess
import sys
import time
from uuid import UUID

import httpx
import pytest
from marked_processes import wait_until
from people_in_browser import CHROMIUM, FLAGS, rank_everything
from services_of_a_test import TINY_PEOPLE, Services

pytestmark = [
    pytest.mark.engines,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium"),
]


def see(url, path, *, wait_for):
    """Screenshot of a page once its text is there; gives requests to other hosts."""
    from playwright.sync_api import sync_playwright

    outside = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.on(
            "request",
            lambda request: (
                "//127.0.0.1" in request.url
                or request.url.startswith(("data:", "blob:"))
                or outside.append(request.url)
            ),
        )
        page.goto(url)
        page.get_by_text(wait_for).first.wait_for(timeout=60_000)
        page.wait_for_timeout(2_000)
        page.screenshot(path=path)
        browser.close()
    return outside


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    with Services(tmp_path_factory.mktemp("services")) as running:
        yield running


def test_run_waits_without_a_process_and_the_reconciler_goes_on(services):
    settings = TINY_PEOPLE | {"run": {"name": "people"}}
    started = services.prefect(
        "deployment", "run", "align/pipeline", "--params", json.dumps({"config": settings})
    )
    assert started.returncode == 0, started.stdout + started.stderr
    run_id = UUID(re.search(r"[0-9a-f-]{36}", started.stdout)[0])

    services.wait_for_state(run_id, "Suspended")
    wait_until(lambda: not services.flow_processes(), 30)
    labelling = labelling_bar(services, run_id)
    assert labelling["data"] == 0
    assert "0 of 3 rankings" in labelling["description"]
    page = f"{services.told('prefect')}/runs/flow-run/{run_id}"
    assert see(page, services.folder / "suspended.png", wait_for="Suspended") == []

    def bar_moves():
        wait_until(lambda: "1 of 3" in labelling_bar(services, run_id)["description"], 60)

    rank_everything(services.told("labels"), services.folder, 3, bar_moves)
    services.wait_for_state(run_id, "Completed")
    assert services.starts(run_id) == 2
    assert services.log("reconciler").count('"action": "resumed"') == 1
    check_what_was_left(services, run_id)
    assert see(page, services.folder / "completed.png", wait_for="Completed") == []
    again = services.alignflow("resume", "people")
    assert "does not wait: it is Completed" in again.stdout


def labelling_bar(services, run_id):
    (bar,) = (v for k, v in services.artifacts(run_id).items() if k.startswith("labelling-"))
    return bar


def check_what_was_left(services, run_id):
    artifacts = services.artifacts(run_id)
    for stage in ("base-model", "data", "sft", "candidates", "reward-model", "ppo", "evaluation"):
        assert artifacts[f"stage-{stage}"]["data"].startswith("## "), stage
    assert "data:image/png;base64," in artifacts["stage-ppo"]["data"]
    for key, service in (("ranking-page", "labels"), ("ray-dashboard", "ray_dashboard")):
        url = services.told(service)
        assert artifacts[key]["data"] == f"[{url}]({url})"
        assert httpx.get(url, follow_redirects=True).status_code in (200, 401)
    assert artifacts["progress-ppo"]["data"] == 100
    summary = json.loads((services.folder / "runs" / "people" / "summary.json").read_text())
    assert summary["simulated_labels"] is False


LONG = ("--set=ppo.steps=500", "--set=cluster.object_store_gib=0.25")


def works_on_ppo(services, name):
    """Whether the run is in PPO and has a checkpoint to go on from."""
    record = services.folder / "runs" / name / "run.json"
    if not record.exists() or '"ppo"' not in record.read_text():
        return False
    return any(services.store.glob("stages/ppo/*/checkpoints/*")) and bool(services.actors())


def wait_until_everything_is_free(services):
    """Seconds until no role's process, no flow's process and no reservation is left."""
    began = time.monotonic()
    wait_until(lambda: not services.actors() and not services.flow_processes(), 60)
    wait_until(lambda: services.processors_in_use() == 0, 60)
    return time.monotonic() - began


def test_cancelled_run_frees_everything(services):
    done = services.alignflow("submit", "tiny", "--set=run.name=cancelled", *LONG)
    run_id = UUID(re.search(r"[0-9a-f-]{36}", done.stdout)[0])
    wait_until(lambda: works_on_ppo(services, "cancelled"), 240)
    assert services.processors_in_use() > 0
    done = services.prefect("flow-run", "cancel", str(run_id))
    assert done.returncode == 0, done.stdout + done.stderr
    assert wait_until_everything_is_free(services) < 30
    services.wait_for_state(run_id, "Cancelled", timeout_s=60)


def test_interrupted_command_frees_everything_on_a_shared_ray(services):
    command = subprocess.Popen(
        [
            *(sys.executable, "-m", "flows.cli", "run", "tiny", "--set=run.name=interrupted"),
            *(f"--set=cluster.address={services.told('ray')}", "--set=run.seed=1", *LONG),
        ],
        cwd=services.folder,
        env=services.environ
        | services.ray_token()
        | {"PREFECT_API_URL": services.told("prefect_api")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    try:
        wait_until(lambda: works_on_ppo(services, "interrupted"), 240)
        command.send_signal(signal.SIGINT)
        assert wait_until_everything_is_free(services) < 30
        assert command.wait(30) == 130
    finally:
        command.kill()


def test_down_ends_what_up_started_and_nothing_else(services):
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    try:
        assert services.processes()
        down = services.alignflow("down")
        assert down.returncode == 0
        assert services.processes() == []
        assert bystander.poll() is None
        assert not (services.store / "services" / "services.json").exists()
        assert "nothing was started" in services.alignflow("down").stdout
    finally:
        bystander.kill()
        bystander.wait()
