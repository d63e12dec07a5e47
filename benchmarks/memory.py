"""Proportional set sizes of processes while something runs.

A sample walks every page table of the processes and keeps them from getting memory meanwhile, so
what is timed is not sampled.
"""

import threading
from collections.abc import Mapping
from pathlib import Path

PERIOD_S = 0.5


class Sampled:
    """Highest PSS in GiB of each named process, and of all of them at one moment, so far."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self.each = dict.fromkeys(pids, 0.0)
        self.together = 0.0
        self._pids = dict(pids)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Sample twice a second until `stop`."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take a last sample; nothing where none is running."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while True:
            ended = self._stop.wait(PERIOD_S)
            sizes = {name: pss_gib(pid) for name, pid in self._pids.items()}
            self.each = {name: max(size, self.each[name]) for name, size in sizes.items()}
            self.together = max(self.together, sum(sizes.values()))
            if ended:
                return


def pss_gib(pid: int) -> float:
    """A process's memory, a page shared by n processes counted 1/n; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0) / 2**20
