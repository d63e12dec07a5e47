"""The Ray process that this one is connected to, and waiting only as long as it is there."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray

from alignment.errors import AbsentClusterError

LOOK_EVERY_S = 5.0
_raylet: str | None = None


@contextmanager
def connected_to(context: Any) -> Iterator[None]:
    """Remember what `ray.init` connected to, for as long as the connection is meant to last."""
    global _raylet
    _raylet = context.address_info["raylet_socket_name"]
    try:
        yield
    finally:
        _raylet = None


def first_ready(references: Sequence[Any], *, timeout_s: float) -> tuple[list[Any], list[Any]]:
    """`ray.wait` for one reference, that does not wait for a Ray that is gone.

    A head that ends takes calls along without an answer: neither they nor Ray would ever tell.

    Raises:
        AbsentClusterError: Ray's process on this machine has ended, or was closed.
    """
    left_s = timeout_s
    while True:
        if not ray.is_initialized():  # closed meanwhile; a call would start another one by itself
            raise AbsentClusterError(
                f"the connection to Ray was closed with calls under way: {len(references)}"
            )
        ready, pending = ray.wait(list(references), timeout=min(LOOK_EVERY_S, left_s))
        left_s -= LOOK_EVERY_S
        if ready or left_s <= 0:
            return ready, pending
        require_raylet()


def require_raylet() -> None:
    """Raise AbsentClusterError if Ray's process on this machine does not answer any more."""
    if _raylet is None:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(_raylet)
        except OSError as error:
            raise AbsentClusterError(
                f"Ray's process on this machine has ended ({_raylet}: {error}), and with it every "
                "call under way. A stage that was interrupted goes on from its newest checkpoint "
                "when the same command is run again"
            ) from error
