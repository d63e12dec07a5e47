"""Metrics to TensorBoard, MLflow or Weights & Biases, through their own clients.

Only what `run.loggers` names is imported, and nothing is sent anywhere by itself: TensorBoard and
MLflow write files, Weights & Biases stays offline unless `run.wandb_mode` says otherwise. What
the clients would report about their use is switched off. The run's own JSON lines are always
written; a step that a resumed stage repeats is replaced there, and recorded again here.
"""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alignment.config import RunConfig
from alignment.errors import ConfigError

_PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow-skinny", "wandb": "wandb"}
_SILENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "DO_NOT_TRACK": "true",
}

Record = Callable[[int, Mapping[str, float]], None]


@dataclass
class Loggers(AbstractContextManager["Loggers"]):
    """The configured loggers of a run; each series' are opened at its first step.

    A series is a stage under one key, e.g. `ppo-1a2b3c4d`: a resumed stage goes on with its own,
    and other settings begin another.

    Raises:
        ConfigError: a logger is asked for whose client is not installed; nothing has started yet.
    """

    config: RunConfig
    folder: Path
    """The run's own."""
    _open: dict[str, list[Record]] = field(default_factory=dict)
    _closing: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        for name in self.config.loggers:
            if find_spec(name) is None:
                raise ConfigError(
                    f'`run.loggers` names "{name}", whose client is not installed: install '
                    f"requirements/loggers.txt (package {_PACKAGES[name]}), or remove it; the "
                    "run's own metrics are written in any case"
                )
        if self.config.loggers:
            for variable, value in _SILENT.items():
                os.environ.setdefault(variable, value)

    def record(self, series: str, step: int, metrics: Mapping[str, float]) -> None:
        """Hand one step of a series to every logger."""
        if series not in self._open:
            self._open[series] = [self._start(name, series, step) for name in self.config.loggers]
        numbers = {name: value for name, value in metrics.items() if value is not None}
        for record in self._open[series]:
            record(step, numbers)

    def __exit__(self, *_: object) -> None:
        """Bring everything to the disk and close; safe to call twice."""
        self._closing.close()
        self._open.clear()

    def _start(self, name: str, series: str, first_step: int) -> Record:
        start = {"tensorboard": self._tensorboard, "mlflow": self._mlflow, "wandb": self._wandb}
        return start[name](series, first_step)

    def _tensorboard(self, series: str, first_step: int) -> Record:
        from torch.utils.tensorboard import SummaryWriter

        folder = self.folder / "tensorboard" / series
        # A resumed stage repeats steps: what an earlier attempt wrote of them is hidden.
        writer = SummaryWriter(str(folder), purge_step=first_step)
        self._closing.callback(writer.close)

        def record(step: int, metrics: Mapping[str, float]) -> None:
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        return record

    def _mlflow(self, series: str, first_step: int) -> Record:
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient

        runs = self.folder.absolute().parent
        uri = self.config.mlflow_tracking_uri or f"sqlite:///{runs / 'mlflow.db'}"
        client = MlflowClient(tracking_uri=uri)
        run_id = _mlflow_run(client, self.config.name, series, artifacts=runs / "mlflow_artifacts")
        self._closing.callback(client.set_terminated, run_id)

        def record(step: int, metrics: Mapping[str, float]) -> None:
            now_ms = int(time.time() * 1000)
            client.log_batch(
                run_id,
                metrics=[Metric(name, value, now_ms, step) for name, value in metrics.items()],
            )

        return record

    def _wandb(self, series: str, first_step: int) -> Record:
        import wandb

        run = wandb.init(
            project="alignflow",
            group=self.config.name,
            name=f"{self.config.name}-{series}",
            id=f"{self.config.name}-{series}",
            resume="allow",
            mode=self.config.wandb_mode,
            dir=str(self.folder),
            settings=wandb.Settings(  # numbers only: no code, console, machine or git facts
                silent=True,
                console="off",
                disable_code=True,
                disable_git=True,
                save_code=False,
                x_disable_stats=True,
                x_disable_meta=True,
            ),
        )
        self._closing.callback(run.finish)

        def record(step: int, metrics: Mapping[str, float]) -> None:
            run.log(dict(metrics), step=step)

        return record


def _mlflow_run(client: Any, name: str, series: str, *, artifacts: Path) -> str:
    """The id of the MLflow run of this run's series: an earlier attempt's, or a new one."""
    experiment = client.get_experiment_by_name("alignflow")
    experiment_id = (
        experiment.experiment_id
        if experiment is not None
        else client.create_experiment("alignflow", artifact_location=artifacts.as_uri())
    )
    wanted = f"tags.`alignflow.run` = '{name}' and tags.`alignflow.series` = '{series}'"
    earlier = client.search_runs([experiment_id], wanted)
    if earlier:
        client.update_run(earlier[0].info.run_id, status="RUNNING")
        return str(earlier[0].info.run_id)
    tags = {"alignflow.run": name, "alignflow.series": series}
    return str(client.create_run(experiment_id, run_name=f"{name}/{series}", tags=tags).info.run_id)
