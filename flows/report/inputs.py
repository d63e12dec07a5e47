"""The files of a run that the report is built from; whatever is not there yet is named."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from alignment.config import PipelineConfig
from alignment.errors import AlignmentError
from alignment.evaluation.result import EvaluationResult, read_evaluation
from alignment.evaluation.samples import EvaluatedSample, read_samples
from flows.metrics_log import read_metrics
from flows.run_record import RunFile, read_run, stage_of
from flows.summary import SUMMARY_NAME, Summary, read_summary

EVALUATION_NAME = "evaluation.json"
SAMPLES_NAME = "samples.jsonl"
TRAINED_STAGES = ("sft", "reward_model", "ppo")

ReadT = TypeVar("ReadT")


@dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """What is known of a run. `gaps` says in words what is missing or cannot be read."""

    folder: Path
    run: RunFile
    config: PipelineConfig | None
    summary: Summary | None
    evaluation: EvaluationResult | None
    samples: Sequence[EvaluatedSample]
    metrics: Mapping[str, Sequence[Mapping[str, Any]]]
    gaps: Sequence[str]

    @property
    def simulated(self) -> bool:
        """True if the simulated panel, not people, ranked."""
        if self.summary is not None:
            return self.summary.simulated_labels
        return bool(self.config and self.config.preferences.source == "panel")


def read_inputs(folder: Path) -> ReportInputs:
    """Read what a run's folder has.

    Raises:
        StoreError: the folder is not a run's.
    """
    run = read_run(folder)
    gaps: list[str] = []

    def read(name: str, reader: Callable[[Path], ReadT], without: str) -> ReadT | None:
        path = folder / name
        if not path.exists():
            gaps.append(f"{name} is not there yet: {without}.")
            return None
        try:
            return reader(path)
        except (AlignmentError, OSError, ValueError, KeyError) as error:
            gaps.append(f"{name} cannot be read: {without}. {error}")
            return None

    last = _last_names(run)
    metrics = {
        stage: read(f"metrics/{last[stage]}.jsonl", read_metrics, f"no curves of {last[stage]}")
        or []
        for stage in TRAINED_STAGES
    }
    return ReportInputs(
        folder=folder,
        run=run,
        config=read("run.json", lambda _: PipelineConfig.model_validate(run.config), "no settings"),
        summary=read(
            SUMMARY_NAME, lambda path: read_summary(path.parent), "no time, memory and versions"
        ),
        evaluation=read(EVALUATION_NAME, read_evaluation, "no results on held-out prompts"),
        samples=read(SAMPLES_NAME, read_samples, "no texts before and after") or [],
        metrics=metrics,
        gaps=gaps,
    )


def _last_names(run: RunFile) -> dict[str, str]:
    """What each trained stage is called in the last round that came to it."""
    return {stage: stage for stage in TRAINED_STAGES} | {stage_of(n): n for n in run.stages}
