"""Why a stage is reused, resumed or redone, in words."""

from collections.abc import Iterator, Mapping
from typing import Any

from flows.manifest import Artifact, StageRequest, canonical
from flows.store import ArtifactStore

NEVER_RUN = "never run"
_SHOWN_CHANGES = 6


def reason_to_work(store: ArtifactStore, request: StageRequest, previous_key: str | None) -> str:
    """Why `request`, which is not finished, has to be worked on.

    `previous_key` is the key under which this run last finished the stage, or None.
    Example: `redone: setting optimizer.learning_rate 4e-05 -> 1e-05; input sft changed`.
    """
    if store.is_interrupted(request):
        return "resumed: begun earlier and not finished"
    if previous_key is None:
        return NEVER_RUN
    previous = store.get(request.stage, previous_key)
    if previous is None:
        return "redone: the earlier result is no longer in the store"
    changes = list(changes_between(previous, request))
    rest = len(changes) - _SHOWN_CHANGES
    more = [f"and {rest} more"] if rest > 0 else []
    return "redone: " + "; ".join(changes[:_SHOWN_CHANGES] + more)


def changes_between(previous: Artifact, request: StageRequest) -> Iterator[str]:
    """Each ingredient of the key that differs, in words."""
    if previous.stage_version != request.stage_version:
        yield f"stage_version {previous.stage_version} -> {request.stage_version}"
    if previous.seed != request.seed:
        yield f"seed {previous.seed} -> {request.seed}"
    old_inputs, new_inputs = previous.inputs, request.inputs
    for name in sorted({*old_inputs, *new_inputs}):
        if name not in old_inputs:
            yield f"input {name} added"
        elif name not in new_inputs:
            yield f"input {name} removed"
        elif old_inputs[name].digest != new_inputs[name].digest:
            yield f"input {name} changed"
    old = dict(_flat(previous.settings))
    new = dict(_flat(canonical(request.settings)))
    for name in sorted({*old, *new}):
        if name not in old:
            yield f"setting {name} added: {new[name]}"
        elif name not in new:
            yield f"setting {name} removed, was {old[name]}"
        elif old[name] != new[name]:
            yield f"setting {name} {old[name]} -> {new[name]}"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
