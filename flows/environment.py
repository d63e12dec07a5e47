"""Environment of a run: offline, no telemetry, everything inside the store.

Set before prefect, ray, gradio, vllm or transformers is imported, because they read it once.
A variable that the user has set is kept.
"""

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from alignment.config import PipelineConfig

RAY_ADDRESS_VARIABLE = "ALIGNFLOW_RAY_ADDRESS"
"""Ray head of the machine's services, for runs that name none. Set by `alignflow up`."""
RAY_DASHBOARD_VARIABLE = "ALIGNFLOW_RAY_DASHBOARD"
"""Address of that head's dashboard. Set by `alignflow up`."""
LABEL_URL_VARIABLE = "ALIGNFLOW_LABEL_URL"
"""Address of the ranking page. Set by `alignflow up`."""

NO_TELEMETRY: Mapping[str, str] = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}

QUIET: Mapping[str, str] = {
    "TOKENIZERS_PARALLELISM": "false",  # tokenizers warn when their process forks
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # it logs each error with traceback, then raises it
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TQDM_DISABLE": "1",  # progress bars of libraries, which our own lines replace
}

NO_GPU: Mapping[str, str] = {"DS_ACCELERATOR": "cpu"}
"""Tells DeepSpeed what it would otherwise find out, and announce, in every process."""

OFFLINE: Mapping[str, str] = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

_PREFECT_SERVICES = (
    "CANCELLATION_CLEANUP",
    "EVENT_LOGGER",
    "EVENT_PERSISTER",
    "FOREMAN",
    "LATE_RUNS",
    "PAUSE_EXPIRATIONS",
    "REPOSSESSOR",
    "SCHEDULER",
    "TASK_RUN_RECORDER",
    "TRIGGERS",
)
PRIVATE_SERVER: Mapping[str, str] = {
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_UI_ENABLED": "false",
    **{f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in _PREFECT_SERVICES},
}
"""A server that lives as long as one run schedules nothing and starts sooner without it."""


def prepare_environment(
    config: PipelineConfig, environ: MutableMapping[str, str] = os.environ
) -> None:
    """Set what the run's libraries read; call it before any of them is imported."""
    settings = {**NO_TELEMETRY, **QUIET, **_prefect_folders(config.run.store)}
    if "PREFECT_API_URL" not in environ:
        settings |= PRIVATE_SERVER
    if not _is_hub_id(config.model.source):
        settings |= OFFLINE
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        settings |= NO_GPU
    for name, value in settings.items():
        environ.setdefault(name, value)


def _prefect_folders(store: Path) -> dict[str, str]:
    home = store.absolute() / "prefect"
    # Prefect keeps results outside PREFECT_HOME unless told otherwise (its issue 23046).
    return {"PREFECT_HOME": str(home), "PREFECT_LOCAL_STORAGE_PATH": str(home / "storage")}


def _is_hub_id(source: str) -> bool:
    return "/" in source and not Path(source).exists() and not source.startswith((".", "/", "~"))
