"""Finds the processes that a test started, and their children, by a mark in their environment."""

import os
import time
from pathlib import Path

MARK = "ALIGNFLOW_TEST_MARK"


def marked_processes(mark):
    """Ids of running processes, other than this one, that carry the mark."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


def wait_until(condition, timeout_s):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def wait_until_no_process_is_left(mark, timeout_s=15.0):
    wait_until(lambda: not marked_processes(mark), timeout_s)
