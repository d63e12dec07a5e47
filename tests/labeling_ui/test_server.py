"""The ranking page in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from alignment.errors import ConfigError, LabelError
from labeling_ui.server import serve, start_server_process

FLOW = """
import sys, time
from pathlib import Path
from labeling_ui.server import start_server_process

server = start_server_process(Path(sys.argv[1]))
print(server.process.pid, server.url, flush=True)
time.sleep(600)
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until_gone(pid, seconds=20):
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not alive(pid)


@pytest.mark.engines
def test_start_and_stop(store_path, store, candidates):
    round_id = store.publish_round(candidates, rankings_per_prompt=1).round_id
    server = start_server_process(store_path, round_id)
    try:
        assert urllib.request.urlopen(server.url + "healthz", timeout=5).status == 200
        assert os.getsid(server.process.pid) == server.process.pid  # Ctrl-C does not reach it
    finally:
        server.stop()
    assert server.process.poll() is not None
    server.stop()


@pytest.mark.engines
def test_the_server_ends_with_the_process_that_started_it(store_path, store):
    flow = subprocess.Popen(
        [sys.executable, "-c", FLOW, str(store_path)], stdout=subprocess.PIPE, text=True
    )
    pid = int(flow.stdout.readline().split()[0])
    assert alive(pid)
    flow.send_signal(signal.SIGKILL)
    flow.communicate()
    assert wait_until_gone(pid)


@pytest.mark.engines
def test_served_by_the_command_and_stopped_by_control_c(store_path, store, candidates):
    store.publish_round(candidates, rankings_per_prompt=1)
    command = [sys.executable, "-m", "labeling_ui", "--store", str(store_path), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    url = process.stdout.readline().split()[-1]
    assert url.startswith("http://127.0.0.1:")
    assert urllib.request.urlopen(url + "healthz", timeout=60).status == 200
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode in (0, 130)
    assert "Traceback" not in errors


def test_a_taken_port_is_told_before_anything_starts(store_path, store):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for start in (start_server_process, serve):
            with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
                start(store_path, port=port)


def test_rounds_that_people_cannot_rank_are_refused(store_path, store, candidates):
    simulated = store.publish_round(candidates, rankings_per_prompt=1, panel="simulated").round_id
    with pytest.raises(LabelError, match="ranked by simulated labelers"):
        start_server_process(store_path, simulated)
    with pytest.raises(LabelError, match="no round 'nope'"):
        start_server_process(store_path, "nope")


def test_a_short_token_is_refused(store_path, monkeypatch):
    with pytest.raises(ConfigError, match="has 3 characters; use 12 or more"):
        serve(store_path, host="0.0.0.0", token="abc")
    monkeypatch.setenv("ALIGNFLOW_LABEL_TOKEN", "four")
    with pytest.raises(ConfigError, match="has 4 characters"):
        start_server_process(store_path)


def test_the_command_explains_itself(store_path):
    garbage = store_path.parent / "garbage.sqlite"
    garbage.write_bytes(b"garbage" * 1000)
    command = [sys.executable, "-m", "labeling_ui", "--store", str(garbage)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: label database")
    assert "Traceback" not in done.stderr
