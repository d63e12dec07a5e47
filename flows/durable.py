"""Writing to disk so that a power cut, a full disk or a kill leaves no half-written file."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignment.errors import StoreError


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader finds the old file or the whole new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=2, ensure_ascii=False, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_path(path.parent)


def finite_json(value: Any) -> Any:
    """`value` as plain JSON for measurements: a number that is not finite becomes null.

    Accepts whatever turns into a float, e.g. numpy scalars; paths become text.
    """
    text = json.dumps(value, default=lambda v: str(v) if isinstance(v, Path) else float(v))
    return json.loads(text, parse_constant=lambda _: None)


@contextmanager
def disk_errors(folder: Path, *, only_full: bool = False) -> Iterator[None]:
    """Turn the system's refusals below `folder` into a StoreError; `only_full`: of a full disk.

    Raises:
        StoreError: names the file, the reason and what to do.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if only_full and not full:
            raise
        advice = "make room" if full else "make it writable"
        raise StoreError(
            f"{error.filename or folder} cannot be written ({error.strerror}); {advice} and run "
            "the same command again. Finished stages and checkpoints are kept"
        ) from error


def made_folder(folder: Path) -> Path:
    """`folder`, made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def sync_path(path: Path) -> None:
    """Bring a file's or a folder's contents to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(root: Path) -> None:
    """Bring everything below `root` to the disk."""
    for path in [root, *root.rglob("*")]:
        sync_path(path)
