"""How much memory a run took: the rise of the system's use, and each role's own share."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from alignment.metrics import MEMORY_OF

_KIB_PER_GIB = 1 << 20
_SAMPLES_PER_PSS = 10
"""The kernel walks all pages of a process for its PSS: 20 ms a GiB, during which it waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReport:
    """Memory in GiB; the system is sampled every `period_s` seconds.

    `peak_rise_gib` is the system's use (total minus available) at its highest, minus that at
    the start. `peak_pss_gib` is each watched process's highest proportional set size (pages
    shared by n processes count 1/n), sampled ten times as seldom.
    """

    period_s: float
    samples: int
    start_gib: float
    peak_rise_gib: float
    peak_pss_gib: dict[str, float] = field(default_factory=dict)


def system_used_kib() -> int:
    """Memory in use on the machine, by everyone: total minus available, in KiB."""
    meminfo = _meminfo_kib()
    return meminfo["MemTotal"] - meminfo["MemAvailable"]


class MemorySampler:
    """A thread that samples the system once a period, processes once in ten, in the block.

    Watched processes may end at any time; their peak stays in the report. `used_kib` tells the
    system's use.
    """

    def __init__(
        self, period_s: float = 1.0, used_kib: Callable[[], int] = system_used_kib
    ) -> None:
        self.period_s = period_s
        self._used_kib = used_kib
        self._start = used_kib()
        self._peak = self._start
        self._samples = 0
        self._watched: dict[str, int] = {}
        self._peak_pss: dict[str, int] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-sampler", daemon=True)

    def __enter__(self) -> "MemorySampler":
        """Start sampling."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop sampling; the report stays readable."""
        self._stop.set()
        self._thread.join()

    def watch(self, name: str, pid: int) -> None:
        """Also sample process `pid`, now and from now on, under `name`, e.g. `policy-0`."""
        size = _pss_kib(pid)
        with self._lock:
            self._watched[name] = pid
            self._peak_pss[name] = max(self._peak_pss.get(name, 0), size)

    def add_peaks(self, peak_pss_gib: Mapping[str, float]) -> None:
        """Take over what another process has seen of the processes it watched."""
        with self._lock:
            for name, gib in peak_pss_gib.items():
                kib = round(gib * _KIB_PER_GIB)
                self._peak_pss[name] = max(self._peak_pss.get(name, 0), kib)

    def report(self) -> MemoryReport:
        """What was seen so far."""
        with self._lock:
            return MemoryReport(
                period_s=self.period_s,
                samples=self._samples,
                start_gib=round(self._start / _KIB_PER_GIB, 3),
                peak_rise_gib=round((self._peak - self._start) / _KIB_PER_GIB, 3),
                peak_pss_gib={
                    name: round(kib / _KIB_PER_GIB, 3) for name, kib in self._peak_pss.items()
                },
            )

    def _run(self) -> None:
        while True:
            used = self._used_kib()
            with self._lock:
                due = self._samples % _SAMPLES_PER_PSS == 0
                wanted = {
                    name: pid
                    for name, pid in self._watched.items()
                    if due or name not in self._peak_pss
                }
            sizes = {name: _pss_kib(pid) for name, pid in wanted.items()}
            with self._lock:
                self._samples += 1
                self._peak = max(self._peak, used)
                for name, size in sizes.items():
                    self._peak_pss[name] = max(self._peak_pss.get(name, 0), size)
            if self._stop.wait(self.period_s):
                return


def memory_metrics(report: MemoryReport) -> dict[str, float]:
    """The report as metrics of a step."""
    by_process = {f"{MEMORY_OF}{name}": gib for name, gib in report.peak_pss_gib.items()}
    return {"memory/rise_gib": report.peak_rise_gib, **by_process}


def system_memory_gib() -> float:
    """Memory of the machine, in GiB."""
    return _meminfo_kib()["MemTotal"] / _KIB_PER_GIB


def _meminfo_kib() -> dict[str, int]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}


def _pss_kib(pid: int) -> int:
    """Proportional set size of a process; 0 if it has ended or belongs to someone else."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
