"""Ray itself: a private one that leaves nothing behind, or a connection to one that is there."""

import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import ray

from alignment.cluster.connection import connected_to
from alignment.cluster.head import NO_IDLE_WORKERS
from alignment.cluster.leftovers import PREFIX, claim, remove_abandoned
from alignment.cluster.process_identity import kill, processes_naming
from alignment.config import ClusterConfig
from alignment.errors import AbsentClusterError, ClusterError

RAY_LOGS = "ray"
"""Name, in the log folder, of the folder with every actor's output."""


_TOKEN_NOTICE = "ray._private.authentication.authentication_token_setup"


@contextmanager
def ray_runtime(
    config: ClusterConfig, *, log_folder: Path, num_gpus: int | None = None
) -> Iterator[Path]:
    """Start a private Ray, or connect to `config.address`; yields the folder of its logs.

    Args:
        config: address of an existing cluster, or none; size of the object store.
        log_folder: where logs of a private Ray stay after it has ended.
        num_gpus: GPUs a private Ray believes in; counted if None. Tests fake them.

    Raises:
        ClusterError: Ray is already running in this process, or does not start or answer.
    """
    if ray.is_initialized():
        raise ClusterError(
            "this process already uses a Ray cluster; close that one first, one at a time"
        )
    if config.address is None:
        with _private_ray(config, log_folder, num_gpus) as logs:
            yield logs
    else:
        with _connected_ray(config.address) as logs:
            yield logs


@contextmanager
def _private_ray(config: ClusterConfig, log_folder: Path, num_gpus: int | None) -> Iterator[Path]:
    log_folder.mkdir(parents=True, exist_ok=True)
    # Unix socket paths are limited to 107 bytes and Ray adds about 65, so: short, and in /tmp.
    short = "/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir()
    remove_abandoned(Path(short))
    scratch = Path(tempfile.mkdtemp(prefix=PREFIX, dir=short))
    logs = log_folder / RAY_LOGS
    claim(scratch, logs.absolute())
    try:
        with _environment(_private_environment()):
            logging.getLogger(_TOKEN_NOTICE).setLevel(logging.ERROR)
            try:
                context = ray.init(
                    address="local",
                    num_cpus=os.cpu_count(),
                    num_gpus=num_gpus,
                    object_store_memory=int(config.object_store_gib * 2**30),
                    include_dashboard=False,
                    log_to_driver=False,
                    configure_logging=False,
                    _temp_dir=str(scratch),
                )
            except Exception as error:  # among them a plain Exception after 30 s of waiting
                for process in processes_naming(scratch):  # Ray forgets those it began
                    kill(process)
                raise ClusterError(
                    f"a private Ray did not start: {error} Run the same command again when the "
                    "machine is less busy"
                ) from error
            _link_logs(logs, scratch / "session_latest" / "logs")
            with connected_to(context):
                yield logs
    finally:
        ray.shutdown()
        _keep_logs(logs, scratch / "session_latest" / "logs")
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _connected_ray(address: str) -> Iterator[Path]:
    with _environment({"RAY_USAGE_STATS_ENABLED": "0"}):
        try:
            _require_listener(address)
            context = ray.init(address=address, log_to_driver=False, configure_logging=False)
        except Exception as error:  # Ray has a dozen ways to say that nobody answers
            raise AbsentClusterError(
                f"`cluster.address` {address!r} does not answer: {error}; check that the cluster "
                "is up and, if it asks for a token, RAY_AUTH_TOKEN_PATH; remove the setting to "
                "start a private one"
            ) from error
        try:
            with connected_to(context):
                yield Path(context.address_info["session_dir"]) / "logs"
        finally:
            ray.shutdown()


def _require_listener(address: str) -> None:
    """Ray itself waits for ever for a head that is not there."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if separator:
        with socket.create_connection((host, int(port)), timeout=10.0):
            pass


def _private_environment() -> dict[str, str]:
    """Settings Ray's own processes inherit."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_TOKEN": _token_of_this_process(),
        **NO_IDLE_WORKERS,
        "PYTHONDONTWRITEBYTECODE": "",  # recompiling every module costs each actor 7 s
    }


@cache
def _token_of_this_process() -> str:
    """A token of our own, once a process, because Ray remembers the first it sees.

    A local Ray asks for a token by default and would write one to the home folder if none were
    given. Setting RAY_AUTH_MODE=disabled beforehand still switches it off.
    """
    return secrets.token_hex(32)


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    # Ray sets RAY_AUTH_MODE for its children: put that back as well.
    before = {name: os.environ.get(name) for name in (*settings, "RAY_AUTH_MODE")}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _link_logs(logs: Path, live: Path) -> None:
    _remove(logs)
    logs.symlink_to(live.resolve(), target_is_directory=True)


def _keep_logs(logs: Path, live: Path) -> None:
    if not live.is_dir():
        return
    _remove(logs)
    shutil.copytree(live, logs, ignore_dangling_symlinks=True)


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
