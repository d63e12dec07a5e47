"""One process at a time: an exclusive lease on a stage or on a run.

The lease is an advisory lock on a file, held by an open descriptor. The operating system gives
it back when its process ends, however it ends, so a killed process never blocks the next one.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from alignment.errors import StoreError

_LOOK_S = 0.2


@contextmanager
def lease(path: Path, what: str, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold `path` exclusively; `what` names the thing for the message, e.g. "stage ppo".

    Raises:
        StoreError: another process holds it and did so for `wait_s` (names process, host and
            since when), or the file system cannot lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _lock(descriptor, path, what, wait_s)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_holder()).encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


@contextmanager
def shared_lease(path: Path, refusal: str, *, alone: bool = False) -> Iterator[None]:
    """Hold `path` together with others, or `alone`; `refusal` is the message if that cannot be.

    Raises:
        StoreError: somebody holds it alone, or, for `alone`, holds it at all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(refusal) from None
        except OSError as error:
            raise _no_locks(path, error) from error
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path, what: str, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise StoreError(
                    f"{what} is being worked on by {_describe(descriptor)}; one process at a time "
                    "may do that. Wait for it to end, or stop it, and run the same command again "
                    f"({path})"
                ) from None
            time.sleep(_LOOK_S)
        except OSError as error:
            raise _no_locks(path, error) from error
        else:
            return


def _no_locks(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path} cannot be locked ({error.strerror}); keep the store on a file system with "
        "locks, e.g. a local disk"
    )


def _holder() -> dict[str, str | int]:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since}


def _describe(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        where = "" if holder["host"] == socket.gethostname() else f" on {holder['host']}"
        return f"process {holder['pid']}{where} since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"  # it has the lock and is about to write who it is
