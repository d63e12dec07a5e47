"""Writing that lasts, and what to say where the disk has no room for it."""

import os
import shutil
from pathlib import Path

from alignment.errors import CheckpointError


def require_space(folder: Path, needed: int, *, what: str, then: str) -> None:
    """Refuse to write `needed` bytes below `folder` where fewer are free.

    Raises:
        CheckpointError: names what was to be written, needed and free space, and `then`, what
            happens when there is room again.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"no room for {what}: it needs {size_text(needed)} in {folder}, where "
            f"{size_text(free)} are free; make room and run the same command again, {then}"
        )


def bytes_below(folder: Path) -> int:
    """Sizes of all files below a folder; 0 if it is not there."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def size_text(size: int) -> str:
    """Bytes for a reader, e.g. `3.2 GiB`."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and bring it to the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
