"""`alignflow doctor`: what it says where something is wrong, and where nothing is."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flows import doctor
from flows.store import ArtifactStore

ROOT = Path(__file__).parents[2]


@pytest.fixture
def no_server(monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "")  # so that what a look sets is undone
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


def finding(store, name):
    (found,) = (f for f in doctor.look_at_all(store) if f.name == name)
    return found


def command(folder, *options, **environ):
    """The finished command in a process of its own: Prefect reads its settings once."""
    inherited = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", "doctor", *options],
        cwd=folder,
        env=inherited | {"PYTHONPATH": str(ROOT)} | environ,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.engines
def test_command_lists_everything_and_changes_nothing_here(tmp_path):
    done = command(tmp_path, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {one["name"]: one["verdict"] for one in json.loads(done.stdout)}
    assert found["Python"] == found["versions"] == found["disk"] == "good"
    assert {"processors", "memory", "store", "services", "Prefect server"} <= set(found)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.engines
def test_server_that_is_away_is_bad(tmp_path):
    done = command(tmp_path, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert done.returncode == 1
    assert "✗ Prefect server" in done.stdout
    assert "http://127.0.0.1:9/api does not answer" in done.stdout
    assert "1 of" in done.stdout


def test_store_of_another_schema_is_bad(tmp_path, no_server):
    ArtifactStore(tmp_path)
    assert finding(tmp_path, "store").verdict == "good"
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"alignflow_store": 0}))
    assert finding(tmp_path, "store").verdict == "bad"


def test_taken_port_is_named_with_the_way_round_it(tmp_path, monkeypatch, no_server):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr(doctor, "DEFAULT_PORTS", {"server": (port, "Prefect server")})
        found = finding(tmp_path, "ports")
    assert found.verdict == "warning"
    assert f"{port} (Prefect server)" in found.found
    assert "--server-port" in found.mend


@pytest.mark.engines
def test_services_whose_supervisor_died_are_bad(tmp_path):
    home = tmp_path / "store" / "services"
    home.mkdir(parents=True)
    gone = {"pid": 2**22 + 1, "started": 1, "numbering": "another boot"}
    told = {"prefect_api": "http://127.0.0.1:9/api"}
    record = {"supervisor": gone, "mark": "m", "ready": True, "services": {}, "told": told}
    (home / "services.json").write_text(json.dumps(record))
    found = {one["name"]: one for one in json.loads(command(tmp_path, "--json").stdout)}
    assert found["services"]["verdict"] == "bad"
    assert "alignflow up" in found["services"]["mend"]
    assert "http://127.0.0.1:9/api does not answer" in found["Prefect server"]["found"]


def test_versions_beside_the_pinned_ones_are_named(tmp_path, monkeypatch, no_server):
    installed = doctor._installed
    others = {"ray": "2.1.0", "fastapi": "0.165.0"}
    monkeypatch.setattr(doctor, "_installed", lambda name: others.get(name) or installed(name))
    found = finding(tmp_path, "versions")
    assert found.verdict == "bad"
    assert "ray 2.1.0 (pinned: 2.60.0)" in found.found
    assert "Prefect's server does not start" in found.found


def test_variables_that_mislead_engines_are_named(tmp_path, monkeypatch, no_server):
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert "RAY_ADDRESS" in finding(tmp_path, "environment").found
