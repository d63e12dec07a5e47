"""Ctrl-C and SIGTERM: both end a run in order, closing engines, leases and the run's record.

Python raises KeyboardInterrupt wherever the program happens to be, and some libraries swallow
it there (seen while transformers was being imported). The request is remembered, and raised
again at the next step or stage.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_requested = False


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt in the block, and remember that they came.

    A SystemExit becomes one too: Ray answers SIGTERM with it once it is initialised.
    """
    global _requested
    _requested = False
    before = {number: signal.signal(number, _request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except SystemExit as end:
        raise KeyboardInterrupt from end
    finally:
        _requested = False
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_if_interrupted() -> None:
    """Raise the KeyboardInterrupt that somebody swallowed; called between steps and stages."""
    if _requested:
        raise KeyboardInterrupt


def _request(number: int, frame: FrameType | None) -> None:
    global _requested
    _requested = True
    raise KeyboardInterrupt
