"""Which process is meant, safe against the reuse of its number by another one."""

import contextlib
import os
import signal
from dataclasses import dataclass
from functools import cache
from pathlib import Path

STATES = {
    "R": "computes",
    "S": "waits",
    "D": "waits for a disk",
    "T": "is stopped by a signal",
    "t": "is held by a debugger",
    "Z": "has ended",
}
"""The letters of /proc/PID/stat in words."""


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process: its number, when it began (clock ticks since boot), and where numbers count."""

    pid: int
    started: int
    numbering: str
    """Boot and process namespace: the same number elsewhere is another process."""


def identity_of(pid: int) -> ProcessIdentity | None:
    """The process with this number now; None where there is none or the system does not say."""
    fields = _stat(pid)
    return ProcessIdentity(pid, int(fields[19]), _numbering()) if fields else None


def is_known_here(process: ProcessIdentity) -> bool:
    """Whether the process, dead or alive, is one of this boot and process namespace."""
    return process.numbering == _numbering()


def state_of(process: ProcessIdentity) -> str | None:
    """Letter of its state (see `STATES`); None if it is gone or on another machine."""
    if not is_known_here(process) or identity_of(process.pid) != process:
        return None
    fields = _stat(process.pid)
    return fields[0] if fields else None


def kill(process: ProcessIdentity) -> None:
    """End this process and no other; nothing happens if it is gone."""
    if state_of(process) not in (None, "Z"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def processes_naming(folder: Path) -> list[ProcessIdentity]:
    """Processes of this user with the folder on their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            is_ours = entry.stat().st_uid == os.getuid()
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue  # it ended while we looked
        process = identity_of(int(entry.name))
        if is_ours and os.fsencode(folder) in command and process is not None:
            found.append(process)
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may itself hold blanks and brackets."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


@cache
def _numbering() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
