"""Ctrl-C and SIGTERM raise KeyboardInterrupt, even where a library swallows the first one."""

import contextlib
import io
import os
import signal
import sys

import pytest
from rich.console import Console

from flows.interruption import interruptible, raise_if_interrupted
from flows.progress import Progress


def send(number):
    os.kill(os.getpid(), number)
    raise_if_interrupted()  # the interpreter needs a moment in which to call the handler


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_signals_interrupt_and_handlers_are_put_back(number):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interruptible():
        send(number)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    raise_if_interrupted()


def test_exit_ordered_by_a_library_is_an_interruption():
    with pytest.raises(KeyboardInterrupt), interruptible():
        sys.exit(15)


def next_stage(progress):
    with progress.stage("ppo"):
        pass


def next_step(progress):
    progress.advance(1, 2, "step")


@pytest.mark.parametrize("go_on", [next_stage, next_step])
def test_swallowed_interrupt_is_raised_at_the_next_step_or_stage(go_on):
    with interruptible():
        with contextlib.suppress(KeyboardInterrupt):
            send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            go_on(Progress(Console(file=io.StringIO())))
