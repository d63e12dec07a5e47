"""A real run that is interrupted: it ends in order, tells how to go on, and leaves no process."""

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from marked_processes import MARK, wait_until, wait_until_no_process_is_left

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One folder for all tests, so that Prefect's database is migrated once."""
    return tmp_path_factory.mktemp("interrupted")


def start(place, mark):
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run", "tiny", "--set", "run.seed=1"],
        cwd=place,
        env=os.environ | {MARK: mark, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_run_file(place):
    path = place / "runs" / "tiny" / "run.json"
    return json.loads(path.read_text()) if path.exists() else {"state": "absent", "stages": {}}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_ends_in_order(place, number):
    mark = uuid.uuid4().hex
    process = start(place, mark)
    wait_until(lambda: read_run_file(place)["state"] == "running", timeout_s=120)
    wait_until(lambda: read_run_file(place)["stages"], timeout_s=60)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "to go on, run again: alignflow run tiny --set run.seed=1" in errors
    assert "Traceback" not in errors
    assert read_run_file(place)["state"] == "interrupted"
    wait_until_no_process_is_left(mark)


def test_killed_run_leaves_no_process(place):
    mark = uuid.uuid4().hex
    process = start(place, mark)
    wait_until(lambda: read_run_file(place)["state"] == "running", timeout_s=120)
    process.kill()
    process.communicate(timeout=60)
    wait_until_no_process_is_left(mark)


def test_refused_data_is_one_message_with_the_traceback_in_the_log(place):
    result = subprocess.run(
        [
            *(sys.executable, "-m", "flows.cli", "run", "tiny"),
            *("--set", "data.source=parquet", "--set", "data.path=absent"),
        ],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert result.returncode == 1
    assert "alignflow: absent is not a folder" in result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    assert "DataError" in (place / "runs" / "tiny" / "error.log").read_text()
    assert read_run_file(place)["state"] == "failed"
    assert not list((place / "store" / "stages" / "data").glob("*/manifest.json"))
