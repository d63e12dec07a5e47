"""What a private Ray of ours leaves when its driver is killed, removed at the next start.

Each scratch folder says whose it is. One whose owner is dead is ours to remove, with whatever
still runs from it; a folder without that file, or of another machine or user, is not touched.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from alignment.cluster.process_identity import (
    ProcessIdentity,
    identity_of,
    is_known_here,
    kill,
    processes_naming,
    state_of,
)

PREFIX = "ray-"
OWNER_FILE = "alignflow-owner.json"
PROCESSES_FILE = "alignflow-processes.jsonl"


def claim(scratch: Path, logs: Path) -> None:
    """Write down that this process owns the folder, and where its logs are to be kept."""
    owner = identity_of(os.getpid())
    if owner is not None:
        record = {"owner": asdict(owner), "logs": str(logs)}
        (scratch / OWNER_FILE).write_text(json.dumps(record), encoding="utf-8")


def record_processes(scratch: Path, processes: Iterable[ProcessIdentity]) -> None:
    """Add actors to those that go when the owner is dead; nothing in a folder not claimed."""
    if (scratch / OWNER_FILE).is_file():
        with (scratch / PROCESSES_FILE).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(process)) + "\n" for process in processes)


def remove_abandoned(parent: Path) -> list[Path]:
    """Remove what dead owners left below `parent`; returns the folders that are gone."""
    removed = []
    for scratch in sorted(parent.glob(f"{PREFIX}*")):
        owner = _owner(scratch)
        if owner is None or not is_known_here(owner) or state_of(owner) not in (None, "Z"):
            continue
        with _alone_in(scratch) as alone:
            if alone:
                for process in [*_recorded(scratch), *processes_naming(scratch)]:
                    kill(process)
                _keep_logs(scratch)
                shutil.rmtree(scratch, ignore_errors=True)
                removed.append(scratch)
    return removed


@contextmanager
def _alone_in(scratch: Path) -> Iterator[bool]:
    """Whether no other starting process is removing the folder, or has removed it."""
    with ExitStack() as opened:
        try:
            file = opened.enter_context((scratch / OWNER_FILE).open("rb"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = (scratch / OWNER_FILE).is_file()
        except (FileNotFoundError, BlockingIOError):
            alone = False
        yield alone


def _owner(scratch: Path) -> ProcessIdentity | None:
    try:
        if scratch.stat().st_uid != os.getuid():
            return None
        record = json.loads((scratch / OWNER_FILE).read_text(encoding="utf-8"))
        return ProcessIdentity(**record["owner"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep_logs(scratch: Path) -> None:
    """Replace the run's link to the logs by the logs, if it is still that link."""
    logs = Path(json.loads((scratch / OWNER_FILE).read_text(encoding="utf-8"))["logs"])
    live = logs.resolve()
    if logs.is_symlink() and scratch.resolve() in live.parents and live.is_dir():
        logs.unlink()
        shutil.copytree(live, logs, ignore_dangling_symlinks=True)


def _recorded(scratch: Path) -> list[ProcessIdentity]:
    try:
        lines = (scratch / PROCESSES_FILE).read_text(encoding="utf-8").splitlines()
        return [ProcessIdentity(**json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError):
        return []
