"""Which code made an artifact: Python, alignflow and, from a working copy, the commit.

And why an engine that a run might have loaded was not.
"""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from alignment.config import PipelineConfig

TRAINING_ENGINES = ("ray", "vllm", "deepspeed")


@cache
def code_versions() -> dict[str, str | None]:
    """Versions of Python and alignflow, and the commit; None where there is none to tell."""
    return {
        "python": platform.python_version(),
        "alignflow": _installed_version(),
        "commit": _commit(),
    }


def why_not_loaded(config: PipelineConfig, engine: str) -> str:
    """Why a finished run never loaded an engine; for `Versions.not_loaded`."""
    if engine in TRAINING_ENGINES and config.cluster.backend == "local":
        return 'every role was held by this process: `cluster.backend = "local"`'
    if engine == "gradio":
        return {
            "panel": "the simulated panel ranks through the label service's store, not on the page",
            "people": "the ranking page was served by another command, `alignflow label serve`",
            "imported": "the rankings came with the data, so nothing was ranked here",
        }[config.preferences.source]
    return "no stage of this run recorded that it used it"


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
