"""Work of several roles: at the same time where they own different devices, else in turn.

On devices of their own (GPUs, or a part of a CPU's threads by `cluster.side_by_side`) the slowest
role decides how long all take. Two roles that share one would slow each other down, and hold the
memory of both at once. What is computed does not depend on it: no role's work may read another's.
"""

import contextvars
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

GRACE_S = 10.0
"""How long the others may take, after one failed, to end the call they are in; longer than a call
takes to see that its Ray is gone (`alignment.cluster.connection`)."""

Task = tuple[Any, Callable[[], Any]]
"""A role and what is to be asked of it. Where it computes is its `devices`, a set of names; a
role that tells none (one in this process) shares with every other."""


def side_by_side(tasks: Sequence[Task], *, halt: threading.Event | None = None) -> list[Any]:
    """What each task returns, in their order; tasks on shared devices follow one another.

    The first task, and those behind it, run in the calling thread, as they would alone.

    Args:
        tasks: what to do.
        halt: set as soon as a task fails; a task of many calls looks at it before each, and
            returns early.

    Raises:
        Exception: the first that any task raised, with a note of others. No task begins after it,
            and the roles of one that does not return within 10 s are ended.
    """
    halt = halt or threading.Event()
    lanes = lanes_of([getattr(role, "devices", None) for role, _ in tasks])
    if len(lanes) == 1:
        return [work() for _, work in tasks]
    results: dict[int, Any] = {}
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def follow(lane: list[int]) -> None:
        try:
            for index in lane:
                if halt.is_set():
                    break
                results[index] = tasks[index][1]()
        except BaseException as error:  # raised again below
            halt.set()
            ended.put(error)
        else:
            ended.put(None)

    threads = [
        threading.Thread(
            target=contextvars.copy_context().run,
            args=(follow, lane),
            name=f"side by side, tasks {lane}",
            daemon=True,
        )
        for lane in lanes[1:]
    ]
    for thread in threads:
        thread.start()
    try:
        follow(lanes[0])
        for _ in lanes:
            error = ended.get()
            if error is not None:
                raise error
    except BaseException as first:
        halt.set()
        roles = [[tasks[index][0] for index in lane] for lane in lanes[1:]]
        _settle(first, ended, list(zip(threads, roles, strict=True)))
        raise
    return [results[index] for index in range(len(tasks))]


def _settle(
    first: BaseException,
    ended: queue.SimpleQueue[BaseException | None],
    others: Sequence[tuple[threading.Thread, Sequence[Any]]],
) -> None:
    """Wait a little for the other lanes, note their failures, and end what does not return.

    A call that goes on, unknown to anyone, could change a role that was set back meanwhile.
    """
    _join([thread for thread, _ in others])
    while not ended.empty():
        error = ended.get()
        if error is not None:
            first.add_note(f"At the same time another role failed: {error!r}")
    late = [(thread, roles) for thread, roles in others if thread.is_alive()]
    for _, roles in late:
        for role in roles:
            if hasattr(role, "end"):
                role.end("another role failed, and this one did not finish its call in time")
    _join([thread for thread, _ in late])


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


def _join(threads: Sequence[threading.Thread]) -> None:
    ends_at = time.monotonic() + GRACE_S
    for thread in threads:
        thread.join(max(0.0, ends_at - time.monotonic()))
