"""The services of one machine: Prefect server, Ray head, worker, ranking page, reconciler.

`alignflow up` starts and supervises them, `alignflow down` ends exactly what it started. README
and docs/operations.md show the same by hand.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.cluster.head import head_command, head_environment, node_address
from alignment.cluster.process_identity import ProcessIdentity
from alignment.errors import ConfigError, ServerError
from flows.environment import (
    LABEL_URL_VARIABLE,
    NO_TELEMETRY,
    RAY_ADDRESS_VARIABLE,
    RAY_DASHBOARD_VARIABLE,
)
from flows.prefect_api import AUTH_VARIABLE, POOL
from flows.supervisor import (
    Service,
    Supervisor,
    end_services,
    is_running,
    marked_processes,
    read_record,
)

DEPLOYMENTS_FILE = Path(__file__).parents[1] / "prefect.yaml"
SERVER_AUTH_VARIABLE = "PREFECT_SERVER_API_AUTH_STRING"
_START_TIMEOUT_S = 420.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where the services listen; all on loopback but Ray's own."""

    server: int
    labels: int
    ray: int
    ray_dashboard: int
    metrics: int


def services_home(store: Path) -> Path:
    """Folder of record, logs, token and Prefect's database, below the store they serve."""
    return store.absolute() / "services"


def up(arguments: Namespace) -> int:
    """Start the services and return once they are ready; they go on in the background."""
    home = services_home(arguments.store)
    record = read_record(home)
    if record and is_running(ProcessIdentity(**record["supervisor"])):
        print("already running:")
        _tell(record)
        return 0
    if record:
        print("ending what an earlier supervisor left")
        _end_recorded(home, record)
    if arguments.foreground:
        return _supervise(arguments, home)
    return _in_background(arguments, home)


def down(arguments: Namespace) -> int:
    """End what `up` started in this store, and nothing else."""
    home = services_home(arguments.store)
    record = read_record(home)
    if record is None:
        print(f"nothing was started for {arguments.store}")
        return 0
    supervisor = ProcessIdentity(**record["supervisor"])
    if is_running(supervisor):
        os.kill(supervisor.pid, 15)
        deadline = time.monotonic() + 240.0
        while is_running(supervisor) and time.monotonic() < deadline:
            time.sleep(0.2)
    left = _end_recorded(home, record)
    print("ended" + (f", {left} of them by force" if left else ""))
    return 0


def use_running_services(store: Path) -> None:
    """Name the server of `alignflow up` for this process, where the user names none."""
    record = read_record(services_home(store))
    if record and "PREFECT_API_URL" not in os.environ:
        os.environ["PREFECT_API_URL"] = str(record["told"]["prefect_api"])


def services_that_died(record: Mapping[str, Any]) -> list[str]:
    """Names of what should run by the record and does not."""
    processes = {name: s["process"] for name, s in record["services"].items()}
    processes["supervisor"] = record["supervisor"]
    return [n for n, p in processes.items() if p and not is_running(ProcessIdentity(**p))]


def _in_background(arguments: Namespace, home: Path) -> int:
    home.mkdir(parents=True, exist_ok=True)
    log = home / "logs" / "supervisor.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *arguments.given, "--foreground"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    print("starting (the first time a minute or two)", flush=True)
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        record = read_record(home)
        if record and record["ready"] and record["supervisor"]["pid"] == process.pid:
            _tell(record)
            return 0
        time.sleep(0.5)
    end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise ServerError(f"the services did not start; {log} ends with:\n{end}")


def _supervise(arguments: Namespace, home: Path) -> int:
    import logging

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    home.mkdir(parents=True, exist_ok=True)
    ports = choose_ports(arguments)
    scratch = Path(tempfile.mkdtemp(prefix="af-", dir="/tmp" if Path("/tmp").is_dir() else None))
    try:
        environ = service_environment(arguments, home, ports)
        supervisor = Supervisor(
            home=home,
            services=_services(arguments, home, ports, scratch, environ),
            environ=environ,
            mark=secrets.token_hex(8),
            told=_addresses(arguments, ports),
        )
        supervisor.run()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


def service_environment(arguments: Namespace, home: Path, ports: Ports) -> dict[str, str]:
    """What every service and every flow run inherits."""
    root = arguments.store.absolute().parent
    environ = {
        **NO_TELEMETRY,
        "PREFECT_API_URL": f"http://127.0.0.1:{ports.server}/api",
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "prefect" / "storage"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_CLIENT_MAX_RETRIES": "8",
        "PREFECT_WORKER_QUERY_SECONDS": "5",
        "PREFECT_WORKER_ENABLE_CANCELLATION": "true",
        "ALIGNFLOW_HOME": str(root),
        LABEL_URL_VARIABLE: f"http://{arguments.label_host}:{ports.labels}/",
        "PYTHONDONTWRITEBYTECODE": "",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    if not arguments.no_ray:
        environ |= head_environment(_ray_token(home))
        environ[RAY_ADDRESS_VARIABLE] = f"{node_address()}:{ports.ray}"
        environ[RAY_DASHBOARD_VARIABLE] = f"http://127.0.0.1:{ports.ray_dashboard}"
    if os.environ.get(SERVER_AUTH_VARIABLE) and not os.environ.get(AUTH_VARIABLE):
        environ[AUTH_VARIABLE] = os.environ[SERVER_AUTH_VARIABLE]
    return environ


def _services(
    arguments: Namespace, home: Path, ports: Ports, scratch: Path, environ: Mapping[str, str]
) -> list[Service]:
    python, store = sys.executable, str(arguments.store)
    health = f"{environ['PREFECT_API_URL']}/health"
    server = Service(
        name="server",
        command=[
            *(python, "-m", "prefect", "server", "start"),
            *("--host", "127.0.0.1", "--port", str(ports.server)),
        ],
        ready=lambda: answers(health),
    )
    ray = Service(
        name="ray",
        command=head_command(
            port=ports.ray,
            dashboard_port=ports.ray_dashboard,
            temp_folder=scratch,
            object_store_gib=arguments.object_store_gib,
        ),
        ready=lambda: listens(node_address(), ports.ray),
        ends_group=True,
    )
    worker = Service(
        name="worker",
        command=[
            *(python, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"),
            *("--name", f"{socket.gethostname()}-{ports.server}"),
        ],
        before=lambda: register_deployments(environ),
    )
    labels = Service(
        name="labels",
        command=[
            *(python, "-m", "labeling_ui", "--store", str(_label_database(arguments.store))),
            *("--host", arguments.label_host, "--port", str(ports.labels)),
        ],
        ready=lambda: answers(f"http://127.0.0.1:{ports.labels}/healthz"),
    )
    reconciler = Service(
        name="reconciler",
        command=[
            *(python, "-m", "flows.cli", "reconcile", "--store", store),
            *("--metrics-port", str(ports.metrics), "--tick-s", str(arguments.tick_s)),
            *("--max-restarts", str(arguments.max_restarts)),
        ],
    )
    return [server, *([] if arguments.no_ray else [ray]), worker, labels, reconciler]


def register_deployments(environ: Mapping[str, str]) -> None:
    """Make the work pool and the deployments of `prefect.yaml` known to the server."""
    if not DEPLOYMENTS_FILE.exists():
        raise ConfigError(
            f"{DEPLOYMENTS_FILE} is missing: run from a checkout, or deploy by hand "
            "(docs/operations.md)"
        )
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    commands = [
        [*prefect, "work-pool", "create", POOL, "--type", "process", "--overwrite"],
        [*prefect, "deploy", "--all", "--prefect-file", str(DEPLOYMENTS_FILE)],
    ]
    for command in commands:
        done = subprocess.run(
            command,
            env={**os.environ, **environ},
            cwd=DEPLOYMENTS_FILE.parent,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if done.returncode != 0:
            raise ServerError(f"{' '.join(command[3:])} failed:\n{done.stdout}{done.stderr}")


def choose_ports(arguments: Namespace) -> Ports:
    """The ports asked for; 0 takes a free one.

    Raises:
        ConfigError: a port is taken; says which service wanted it and by which option to move it.
    """
    wanted = {
        "server": arguments.server_port,
        "labels": arguments.label_port,
        "ray": arguments.ray_port,
        "ray_dashboard": arguments.ray_dashboard_port,
        "metrics": arguments.metrics_port,
    }
    options = {"labels": "--label-port", "ray_dashboard": "--ray-dashboard-port"}
    held, chosen = [], {}
    try:
        for name, port in wanted.items():
            option = options.get(name, f"--{name}-port")
            try:
                listener = socket.create_server(("127.0.0.1", port))
            except OSError as error:
                raise ConfigError(
                    f"port {port} for {name} cannot be used ({error.strerror}): end what listens "
                    f"there, or name another one with {option} (0 takes a free one)"
                ) from error
            held.append(listener)
            chosen[name] = listener.getsockname()[1]
    finally:
        for listener in held:
            listener.close()
    return Ports(**chosen)


def answers(url: str) -> bool:
    """Whether an HTTP server says that it is well."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with suppress(urllib.error.URLError, OSError), opener.open(url, timeout=2) as answer:
        return bool(answer.status == 200)
    return False


def listens(host: str, port: int) -> bool:
    """Whether something accepts connections there."""
    with suppress(OSError), socket.create_connection((host, port), timeout=2):
        return True
    return False


def _label_database(store: Path) -> Path:
    path = store.absolute() / "labels" / "labels.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _ray_token(home: Path) -> Path:
    """A file with the secret that the Ray head asks for, made once, readable by this user only."""
    path = home / "ray_token"
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    return path


def _addresses(arguments: Namespace, ports: Ports) -> dict[str, str]:
    told = {
        "prefect_api": f"http://127.0.0.1:{ports.server}/api",
        "prefect": f"http://127.0.0.1:{ports.server}",
        "labels": f"http://{arguments.label_host}:{ports.labels}/",
        "metrics": f"http://127.0.0.1:{ports.metrics}/metrics",
    }
    if not arguments.no_ray:
        told["ray"] = f"{node_address()}:{ports.ray}"
        told["ray_dashboard"] = f"http://127.0.0.1:{ports.ray_dashboard}"
    return told


def _end_recorded(home: Path, record: Mapping[str, Any]) -> int:
    """End what is left of a record; gives how many processes that were."""
    identities = [
        ProcessIdentity(**service["process"])
        for service in reversed(list(record["services"].values()))
        if service["process"]
    ]
    running = [process for process in identities if is_running(process)]
    left = len({p.pid for p in [*running, *marked_processes(record["mark"])]})
    if left:
        end_services(running, record["mark"])
    (home / "services.json").unlink(missing_ok=True)
    return left


def _tell(record: Mapping[str, Any]) -> None:
    told = record["told"]
    lines = {
        "dashboard": told["prefect"],
        "ranking page": told["labels"],
        "metrics": told["metrics"],
        "Ray": told.get("ray"),
        "Ray dashboard": told.get("ray_dashboard"),
    }
    for name, address in lines.items():
        if address:
            print(f"  {name:<14} {address}")
    print("  for commands of Prefect itself:  export PREFECT_API_URL=" + told["prefect_api"])
    log = next(iter(record["services"].values()))["log"]
    print(f"  logs           {Path(log).parent}")
