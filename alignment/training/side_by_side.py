"""Work of several roles: at the same time where they own different devices, else in turn.

On GPUs of their own the slowest role decides how long all take. Two roles that share a processor
would only slow each other down, and hold the memory of both at once. What is computed does not
depend on it: no role's work may read another's.
"""

import contextvars
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

GRACE_S = 5.0
"""How long the others may take, after one failed, to end the call they are in."""

Task = tuple[Any, Callable[[], Any]]
"""A role and what is to be asked of it. Where it computes is its `devices`, a set of names; a
role that tells none (one in this process) shares with every other."""


def side_by_side(tasks: Sequence[Task]) -> list[Any]:
    """What each task returns, in their order; tasks on shared devices follow one another.

    Raises:
        Exception: the first that any task raised. Tasks behind it on the same devices do not
            begin; what runs on other devices is waited for a few seconds, and then left alone.
    """
    lanes = lanes_of([getattr(role, "devices", None) for role, _ in tasks])
    if len(lanes) == 1:
        return [work() for _, work in tasks]
    results: dict[int, Any] = {}
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def follow(lane: list[int]) -> None:
        try:
            for index in lane:
                results[index] = tasks[index][1]()
        except BaseException as error:  # raised again by whoever waits
            ended.put(error)
        else:
            ended.put(None)

    threads = [
        threading.Thread(target=contextvars.copy_context().run, args=(follow, lane), daemon=True)
        for lane in lanes
    ]
    for thread in threads:
        thread.start()
    for _ in threads:
        error = ended.get()
        if error is not None:
            _wait_briefly(threads)
            raise error
    return [results[index] for index in range(len(tasks))]


def lanes_of(devices: Sequence[frozenset[str] | None]) -> list[list[int]]:
    """Which tasks must follow one another: indices by lane, each in order.

    Tasks share a lane if they share a device, directly or through others; None shares with all.
    """
    if any(own is None for own in devices):
        return [list(range(len(devices)))]
    lanes: list[tuple[frozenset[str], list[int]]] = []
    for index, own in enumerate(devices):
        assert own is not None
        touched = [lane for lane in lanes if lane[0] & own]
        names = own.union(*(names for names, _ in touched))
        members = sorted([index, *(member for _, lane in touched for member in lane)])
        lanes = [lane for lane in lanes if lane not in touched] + [(names, members)]
    return sorted(members for _, members in lanes)


def _wait_briefly(threads: Sequence[threading.Thread]) -> None:
    """So that a role is rarely in the middle of a call when its end comes."""
    ends_at = time.monotonic() + GRACE_S
    for thread in threads:
        thread.join(max(0.0, ends_at - time.monotonic()))
