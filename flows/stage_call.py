"""A stage as it is asked for on another machine: which function, on which artifacts, how set."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

from alignment.config import PipelineConfig
from alignment.errors import ClusterError
from flows.manifest import Artifact
from flows.store import ArtifactStore

_STAGES = "flows.stages."


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCall:
    """One stage of a run, to be done by another process.

    `function` is e.g. `flows.stages.sft:train_sft`; `inputs` are its artifacts as `{stage, key}`,
    lists of them, or None; `config` has absolute folders. `key` is what the stage must come out
    as, `code` the digest of the code that asks, `folder` the working folder that settings are
    relative to.
    """

    function: str
    inputs: list[Any]
    config: dict[str, Any]
    round: int
    key: str
    code: str
    folder: str

    def as_json(self) -> dict[str, Any]:
        """The call as it is left in the store."""
        return asdict(self)

    def settings(self) -> PipelineConfig:
        """The run's settings."""
        return PipelineConfig.model_validate(self.config)

    def stage(self) -> Callable[..., Artifact]:
        """The function that the local path calls, too."""
        module, _, name = self.function.partition(":")
        if not module.startswith(_STAGES):
            raise ClusterError(f"{self.function} is no stage; accepted: {_STAGES}NAME:FUNCTION")
        stage: Callable[..., Artifact] = getattr(import_module(module), name)
        return stage


def function_name(stage: Callable[..., Any]) -> str:
    """A stage's function as text, to be found again by `StageCall.stage`."""
    return f"{stage.__module__}:{stage.__qualname__}"


def inputs_as_json(inputs: Any) -> Any:
    """Artifacts as references; sequences and None stay what they are."""
    if inputs is None:
        return None
    if isinstance(inputs, Artifact):
        return {"stage": inputs.stage, "key": inputs.key}
    return [inputs_as_json(item) for item in inputs]


def inputs_at_hand(store: ArtifactStore, told: Any) -> Any:
    """The artifacts behind references, their files here.

    Raises:
        ClusterError: one is not in the store.
    """
    if told is None:
        return None
    if isinstance(told, Sequence):
        return [inputs_at_hand(store, item) for item in told]
    assert isinstance(told, Mapping)
    artifact = store.at_hand(told["stage"], told["key"])
    if artifact is None:
        raise ClusterError(
            f"{told['stage']} {told['key'][:16]}, which the stage starts from, is not in the store "
            f"{store.where} as the cluster sees it. Name a store that both sides see: a folder at "
            "the same path on both, or `run.shared_store`"
        )
    return artifact
