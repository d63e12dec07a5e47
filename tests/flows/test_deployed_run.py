"""A run of the deployment as its operator lives it: started, suspended, ranked, resumed, seen."""

import json
import re
import subprocess
import sys
import time
from uuid import UUID

import pytest
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


def test_run_waits_without_a_process_and_the_reconciler_goes_on(tmp_path):
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    try:
        with Services(tmp_path) as services:
            settings = TINY_PEOPLE | {"run": {"name": "people"}}
            started = services.prefect(
                "deployment", "run", "align/pipeline", "--params", json.dumps({"config": settings})
            )
            assert started.returncode == 0, started.stdout + started.stderr
            run_id = UUID(re.search(r"[0-9a-f-]{36}", started.stdout)[0])

            services.wait_for_state(run_id, "Suspended")
            while services.flow_processes():
                time.sleep(0.5)
            labelling = labelling_bar(services, run_id)
            assert labelling["data"] == 0
            assert "0 of 3 rankings" in labelling["description"]
            page = f"{services.told('prefect')}/runs/flow-run/{run_id}"
            assert see(page, tmp_path / "suspended.png", wait_for="Suspended") == []

            def bar_moves():
                deadline = time.monotonic() + 60
                while "1 of 3" not in labelling_bar(services, run_id)["description"]:
                    assert time.monotonic() < deadline
                    time.sleep(1)

            rank_everything(services.told("labels"), tmp_path, 3, bar_moves)
            services.wait_for_state(run_id, "Completed")
            assert services.starts(run_id) == 2
            assert services.log("reconciler").count('"action": "resumed"') == 1
            check_what_was_left(services, run_id, tmp_path)
            assert see(page, tmp_path / "completed.png", wait_for="Completed") == []
            again = services.alignflow("resume", "people")
            assert "does not wait: it is Completed" in again.stdout
        assert services.processes() == []
        assert bystander.poll() is None
        assert not (services.store / "services" / "services.json").exists()
    finally:
        bystander.kill()
        bystander.wait()


def labelling_bar(services, run_id):
    (bar,) = (v for k, v in services.artifacts(run_id).items() if k.startswith("labelling-"))
    return bar


def check_what_was_left(services, run_id, folder):
    artifacts = services.artifacts(run_id)
    for stage in ("base-model", "data", "sft", "candidates", "reward-model", "ppo", "evaluation"):
        assert artifacts[f"stage-{stage}"]["data"].startswith("## "), stage
    assert "data:image/png;base64," in artifacts["stage-ppo"]["data"]
    assert artifacts["progress-ppo"]["data"] == 100
    summary = json.loads((folder / "runs" / "people" / "summary.json").read_text())
    assert summary["simulated_labels"] is False
