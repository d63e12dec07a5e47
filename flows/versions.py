"""Which code made an artifact: Python, alignflow and, from a working copy, the commit."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@cache
def code_versions() -> dict[str, str | None]:
    """Versions of Python and alignflow, and the commit; None where there is none to tell."""
    return {
        "python": platform.python_version(),
        "alignflow": _installed_version(),
        "commit": _commit(),
    }


def _installed_version() -> str | None:
    try:
        return version("alignflow")
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the working copy that holds this very file, with `-dirty` if it has changes."""
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None  # an installed copy may lie inside somebody else's repository
    return _git("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")


def _git(*arguments: str) -> str | None:
    folder = Path(__file__).parent
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None
