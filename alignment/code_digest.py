"""Which code a process runs: machines that work together must have the same. Loads no engine."""

import hashlib
from functools import cache
from pathlib import Path

from alignment.errors import ClusterError

_PACKAGES = ("alignment", "flows", "labeling_ui")
DIGITS_SHOWN = 12


@cache
def code_digest() -> str:
    """SHA-256, in hexadecimal, of every Python file of our packages as this process finds them."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def require_same_code(theirs: str, where: str) -> None:
    """Refuse to work together with other code; `where` says who has it, e.g. `policy rank 0`.

    Raises:
        ClusterError: names both digests and how to get to one code.
    """
    ours = code_digest()
    if theirs != ours:
        raise ClusterError(
            f"{where} has other code of alignflow ({theirs[:DIGITS_SHOWN]}) than this process "
            f"({ours[:DIGITS_SHOWN]}), so results could not be told apart. Bring both to one "
            "commit (an image whose tag is the commit, or the same checkout; docs/operations.md) "
            "and run the same command again"
        )
