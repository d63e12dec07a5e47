"""Loggers with their real clients; what is not installed is refused by name, nothing is sent."""

import builtins
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from alignment.config import RunConfig
from alignment.errors import ConfigError
from flows.loggers import Loggers

SERIES = "ppo-1a2b3c4d"


def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "r"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def record(folder: Path, steps: range, **settings: Any) -> None:
    with Loggers(RunConfig(name="r", **settings), folder) as loggers:
        for step in steps:
            loggers.record(SERIES, step, {"ppo/kl_nats": 0.5 * step, "ppo/score_mean": 1.0})


def test_tensorboard_holds_each_step_and_a_resumed_run_replaces_what_it_repeats(
    tmp_path: Path,
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run_folder(tmp_path)
    record(folder, range(1, 5), loggers=("tensorboard",))
    record(folder, range(3, 6), loggers=("tensorboard",))  # resumed after step 2
    events = EventAccumulator(str(folder / "tensorboard" / SERIES))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["ppo/kl_nats", "ppo/score_mean"]
    scalars = events.Scalars("ppo/kl_nats")
    assert [(e.step, e.value) for e in scalars] == [(s, 0.5 * s) for s in range(1, 6)]


def test_no_client_is_imported_unless_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = builtins.__import__

    def watching(name: str, *rest: Any, **named: Any) -> Any:
        asked.append(name.partition(".")[0])
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", watching)
    record(run_folder(tmp_path), range(1, 3))
    assert not {"tensorboard", "torch", "mlflow", "wandb"} & set(asked)
    assert list(run_folder(tmp_path).iterdir()) == []


def test_a_client_that_is_not_installed_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [])  # where nothing is installed
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    with pytest.raises(ConfigError, match=r'names "mlflow".*requirements/loggers\.txt'):
        Loggers(RunConfig(loggers=("mlflow",)), tmp_path)


@pytest.mark.skipif(find_spec("mlflow") is None, reason="requirements/loggers.txt not installed")
def test_mlflow_keeps_one_run_a_series_in_a_local_file(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    folder = run_folder(tmp_path)
    record(folder, range(1, 4), loggers=("mlflow",))
    record(folder, range(4, 6), loggers=("mlflow",))
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("alignflow")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "ppo/kl_nats")
    assert [(m.step, m.value) for m in history] == [(s, 0.5 * s) for s in range(1, 6)]
    assert run.info.status == "FINISHED"


@pytest.mark.skipif(find_spec("wandb") is None, reason="requirements/loggers.txt not installed")
def test_wandb_stays_offline_in_the_runs_folder(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    record(folder, range(1, 4), loggers=("wandb",))
    (offline,) = (folder / "wandb").glob("offline-run-*")
    (written,) = offline.glob("*.wandb")
    content = written.read_bytes()
    assert b"ppo/kl_nats" in content
    assert b"git" not in content
