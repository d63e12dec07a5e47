"""Proportional set sizes of processes while something runs."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PERIOD_S = 0.5


class PeakMemory:
    """Highest PSS in GiB of each named process, and of all of them at one moment."""

    def __init__(self) -> None:
        self.each: dict[str, float] = {}
        self.together = 0.0

    def add(self, sizes: Mapping[str, float]) -> None:
        """One sample."""
        for name, size in sizes.items():
            self.each[name] = max(size, self.each.get(name, 0.0))
        self.together = max(self.together, sum(sizes.values()))


@contextmanager
def peak_memory(pids: Mapping[str, int]) -> Iterator[PeakMemory]:
    """Sample the processes twice a second for as long as the block runs."""
    peak, stop = PeakMemory(), threading.Event()

    def sample() -> None:
        while True:
            peak.add({name: pss_gib(pid) for name, pid in pids.items()})
            if stop.wait(PERIOD_S):
                return

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
        peak.add({name: pss_gib(pid) for name, pid in pids.items()})


def pss_gib(pid: int) -> float:
    """A process's memory, a page shared by n processes counted 1/n; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0) / 2**20
