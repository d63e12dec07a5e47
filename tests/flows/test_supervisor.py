"""The supervisor with plain programs as services: restarts, back-off, and a clean end."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from marked_processes import wait_until

from flows.supervisor import (
    Service,
    Supervisor,
    marked_processes,
    pause_before_restart,
    read_record,
)

SLEEPS = "import time; time.sleep(3600)"
STUBBORN = (
    "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    f"subprocess.Popen([sys.executable, '-c', {SLEEPS!r}]); time.sleep(3600)"
)


def python(code):
    return [sys.executable, "-c", code]


def supervise(home):
    """In a process of its own, as `alignflow up` does it."""
    code = f"""
import sys
from pathlib import Path
from flows import supervisor
home = Path({str(home)!r})
services = [
    supervisor.Service(name="sleeps", command=[sys.executable, "-c", {SLEEPS!r}]),
    supervisor.Service(
        name="stubborn", command=[sys.executable, "-c", {STUBBORN!r}], ends_group=True
    ),
]
supervisor.Supervisor(
    home=home, services=services, environ={{}}, mark={home.name!r}, stop_s=1.0
).run()
"""
    return subprocess.Popen(python(code), cwd=Path(__file__).parents[2])


@pytest.fixture
def home(tmp_path):
    tmp_path.mkdir(exist_ok=True)
    return tmp_path


def pid(home, service):
    return read_record(home)["services"][service]["process"]["pid"]


def is_up(home, count):
    record = read_record(home)
    return bool(record and record["ready"]) and len(marked_processes(home.name)) == count


@pytest.mark.engines
def test_killed_service_is_started_again_and_all_is_ended(home):
    process = supervise(home)
    try:
        wait_until(lambda: is_up(home, 3), 20)
        first, stubborn = pid(home, "sleeps"), pid(home, "stubborn")
        os.kill(first, signal.SIGKILL)
        os.kill(stubborn, signal.SIGKILL)  # its own child goes with it, before it starts again
        wait_until(lambda: pid(home, "sleeps") != first and pid(home, "stubborn") != stubborn, 20)
        wait_until(lambda: is_up(home, 3), 20)
        assert read_record(home)["services"]["sleeps"]["restarts"] == 1
        process.terminate()
        assert process.wait(30) == 0
        assert marked_processes(home.name) == []
        assert read_record(home) is None
    finally:
        process.kill()
        for left in marked_processes(home.name):
            os.kill(left.pid, signal.SIGKILL)


def test_pauses_grow_up_to_a_minute():
    assert [pause_before_restart(deaths) for deaths in range(9)] == [1, 1, 2, 4, 8, 16, 32, 60, 60]


def test_service_that_never_gets_ready_ends_everything(home):
    services = [
        Service(name="good", command=python(SLEEPS)),
        Service(name="never", command=python(SLEEPS), ready=lambda: False),
    ]
    supervisor = Supervisor(home=home, services=services, environ={}, mark=home.name)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with pytest.raises(TimeoutError, match="never was not ready in time"):
            supervisor.run(start_timeout_s=1.0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert marked_processes(home.name) == []


def test_record_is_whole_or_absent(home):
    assert read_record(home) is None
    (home / "services.json").write_text(json.dumps({"mark": "m"})[:5])
    assert read_record(home) is None
