"""What every stage of a run shares, and the one way a stage is reused, resumed or done."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from alignment.config import PipelineConfig
from alignment.errors import ClusterError, StoreError
from alignment.seeds import derive_seed
from flows.engines import Engines
from flows.loggers import Loggers
from flows.manifest import Artifact, InputReference, StageRequest
from flows.memory import MemorySampler, memory_metrics
from flows.progress import Progress
from flows.reuse import NEVER_RUN, reason_to_work
from flows.run_record import METRICS_OUTPUT, RunOptions, RunRecord, name_in_round
from flows.store import ArtifactStore
from flows.timing import WorkClock
from flows.workspace import StageWorkspace

PromptT = TypeVar("PromptT")
ACTORS = "actors"
"""Name under which a stage's manifest keeps the processes that did its work."""


class OnlyStageDone(Exception):  # noqa: N818 - nothing went wrong
    """The one stage that was asked for is finished; the run ends here."""


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a stage's work leaves: names of the outputs it wrote, and its headline numbers."""

    outputs: tuple[str, ...]
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """One invocation of a run: its settings, and the places and tools its stages use.

    `round` is the round at hand, from 1: it names a stage in the run, and has its own seeds.
    `elsewhere` does the stage at hand on a cluster; None: it is done in this process.
    `expected_key` is the key that whoever asked for one stage alone has found.
    """

    config: PipelineConfig
    options: RunOptions
    record: RunRecord
    store: ArtifactStore
    engines: Engines
    clock: WorkClock
    memory: MemorySampler
    progress: Progress
    loggers: Loggers
    reused: list[str] = field(default_factory=list)
    round: int = 1
    elsewhere: Callable[[StageRequest], Artifact] | None = None
    expected_key: str | None = None

    def in_round(self, number: int) -> "RunContext":
        """The same invocation, at work on round `number`."""
        return replace(self, round=number)

    def name(self, stage: str) -> str:
        """What `stage` is called in this run, in the round at hand."""
        return name_in_round(stage, self.round)

    def seed(self, stage: str) -> int:
        """The stage's own seed, derived from the run's, another one in each round."""
        return derive_seed(self.config.run.seed, self.name(stage))

    def prompts_of_round(self, prompts: Sequence[PromptT]) -> Sequence[PromptT]:
        """The part of the train prompts that belongs to the round at hand: no two rounds share."""
        each = len(prompts) // self.config.rounds.count
        return prompts[(self.round - 1) * each : self.round * each]

    def round_settings(self) -> dict[str, int]:
        """What a stage that takes prompts of the round adds to its settings."""
        count = self.config.rounds.count
        return {} if count == 1 else {"round": self.round, "rounds": count}

    def request(
        self,
        stage: str,
        *,
        version: int,
        settings: Mapping[str, Any],
        inputs: Mapping[str, InputReference],
    ) -> StageRequest:
        """A request for a stage of this run, its seed filled in."""
        return StageRequest(
            stage=stage,
            stage_version=version,
            settings=settings,
            inputs=inputs,
            seed=self.seed(stage),
        )

    def stage(
        self, request: StageRequest, work: Callable[[StageWorkspace], StageResult]
    ) -> Artifact:
        """The finished stage: from the store if it is there, else by doing (or resuming) it."""
        name = self.name(request.stage)
        self._require_expected(request)
        with self.clock.stage(name), self.progress.stage(name) as line:
            artifact = self.store.lookup(request)
            if artifact is not None:
                self.reused.append(name)
                self.record.finish_stage(artifact, reused=True, name=name)
                line.done("reused")
                return artifact
            self._require_asked_for(name)
            reason = reason_to_work(self.store, request, self.record.finished_key(name))
            if reason != NEVER_RUN:
                self.progress.say(f"{name} {reason}")
            self.record.begin_stage(name, request.key, reason)
            if self.elsewhere is not None:
                artifact = self.elsewhere(request)
            else:
                with self.store.open_stage(request, run=self.record.name) as workspace:
                    artifact = self._do(work, workspace)
            self.record.finish_stage(artifact, reused=False, name=name)
            return artifact

    def stop_if_only(self, artifact: Artifact) -> None:
        """End the run here if this stage alone was asked for; called outside of tasks."""
        if artifact.stage == self.options.only:
            raise OnlyStageDone(artifact.stage)

    def _require_asked_for(self, stage: str) -> None:
        only = self.options.only
        if only not in (None, stage):
            raise StoreError(
                f"{only} alone was asked for, but {stage} before it is not in {self.store.root} "
                f"with these settings. Do {stage} first, or the whole pipeline"
            )

    def _require_expected(self, request: StageRequest) -> None:
        if self.expected_key not in (None, request.key):
            raise ClusterError(
                f"{request.stage} has key {request.key[:16]} here and {self.expected_key[:16]} "
                "where it was asked for: a file that the settings name, e.g. of a reward function, "
                "differs between the two machines. Make it the same on both and run again"
            )

    def warn(self, text: str) -> None:
        """Say what a reader of the result should know, and keep it in the run's record."""
        self.progress.say(f"warning: {text}")
        self.record.warn(text)

    def sink(self, stage: str, total_steps: int) -> "ProgressSink":
        """A metric sink that writes to the run's folder and moves the stage's progress line."""
        return ProgressSink(self, self.name(stage), total_steps)

    def _do(
        self, work: Callable[[StageWorkspace], StageResult], workspace: StageWorkspace
    ) -> Artifact:
        result = work(workspace)
        outputs = list(result.outputs)
        stage = self.name(workspace.request.stage)
        recorded = self.record.metrics_path(stage)
        if recorded.exists():
            workspace.output(METRICS_OUTPUT).write_bytes(recorded.read_bytes())
            outputs.append(METRICS_OUTPUT)
        actors = [
            actor.model_dump(mode="json") | {"stage": stage} for actor in self.engines.take_actors()
        ]
        return workspace.commit(
            outputs=outputs,
            metrics={**result.metrics, ACTORS: actors},
            versions=dict(self.engines.versions),
        )


class ProgressSink:
    """Writes each step's metrics and shows the step, its rate and the time left."""

    def __init__(self, context: RunContext, stage: str, total_steps: int) -> None:
        self._stage = stage
        self._dashboard = context.options.dashboard
        self._metrics = context.record.metrics(stage)
        self._loggers = context.loggers
        self._series = f"{stage}-{context.record.file.stages[stage].key[:8]}"
        self._progress = context.progress
        self._memory = context.memory
        self._total = total_steps

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one step's metrics and what memory was seen so far."""
        metrics = {**metrics, **memory_metrics(self._memory.report())}
        self.keep(step, metrics)
        shown = {name.split("/")[-1]: metrics[name] for name in metrics if name in SHOWN}
        self._progress.advance(step, self._total, "step", **shown)

    def keep(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one step's metrics as they are, and show nothing."""
        self._metrics.record(step, metrics)
        self._loggers.record(self._series, step, metrics)
        if self._dashboard is not None:
            self._dashboard.recorded(self._stage, step, metrics)


SHOWN = (
    "sft/loss",
    "reward_model/loss",
    "reward_model/accuracy",
    "ppo/score_mean",
    "ppo/kl_nats",
    "ppo/eos_rate",
)
"""Figures worth a place on the progress line."""


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Put the tokenizer and generation settings of one model folder beside another's weights."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            (folder / name).write_bytes((source / name).read_bytes())


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
