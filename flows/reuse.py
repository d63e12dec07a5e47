"""Why a stage is reused, resumed or redone, in words."""

from collections.abc import Iterator, Mapping
from typing import Any

from flows.manifest import Artifact, InputReference, StageRequest, canonical
from flows.store import ArtifactStore

NEVER_RUN = "never run"
_SHOWN_CHANGES = 6
_FOLLOWED_STAGES = 16
_DIGITS_SHOWN = 8


def reason_to_reuse(artifact: Artifact, run: str) -> str:
    """Why `artifact` answers the request of run `run` as it is.

    Example: `reused: settings, inputs, seed and stage_version 1 equal those of run nightly, made
    2026-01-31T04:10:00+00:00`.
    """
    maker = "this run" if artifact.run == run else f"run {artifact.run or '?'}"
    return (
        f"reused: settings, inputs, seed and stage_version {artifact.stage_version} equal those "
        f"of {maker}, made {artifact.created}"
    )


def reason_to_work(store: ArtifactStore, request: StageRequest, previous_key: str | None) -> str:
    """Why `request`, which is not finished, has to be worked on.

    `previous_key` is the key under which this run last finished the stage, or None. An input
    that changed is followed down to what changed first.
    Example: `redone: setting optimizer.learning_rate 4e-05 -> 1e-05; input sft 51ab02cd ->
    9e3f00aa (its setting epochs 2 -> 3)`.
    """
    if store.is_interrupted(request):
        return "resumed: begun earlier and not finished"
    if previous_key is None:
        return NEVER_RUN
    previous = store.get(request.stage, previous_key)
    if previous is None:
        return "redone: the earlier result is no longer in the store"
    changes = list(changes_between(store, previous, request))
    rest = len(changes) - _SHOWN_CHANGES
    more = [f"and {rest} more"] if rest > 0 else []
    return "redone: " + "; ".join(changes[:_SHOWN_CHANGES] + more)


def changes_between(
    store: ArtifactStore,
    previous: Artifact,
    wanted: Artifact | StageRequest,
    *,
    follow: int = _FOLLOWED_STAGES,
) -> Iterator[str]:
    """Each ingredient of the key that differs, in words, with its old and new value.

    What changed behind an input is looked for through at most `follow` stages.
    """
    if previous.stage_version != wanted.stage_version:
        yield f"stage_version {previous.stage_version} -> {wanted.stage_version}"
    if previous.seed != wanted.seed:
        yield f"seed {previous.seed} -> {wanted.seed}"
    old_inputs, new_inputs = previous.inputs, wanted.inputs
    for name in sorted({*old_inputs, *new_inputs}):
        if name not in old_inputs:
            yield f"input {name} added: {_shown(new_inputs[name])}"
        elif name not in new_inputs:
            yield f"input {name} removed, was {_shown(old_inputs[name])}"
        elif old_inputs[name].digest != new_inputs[name].digest:
            old_input, new_input = old_inputs[name], new_inputs[name]
            cause = _cause(store, old_input, new_input, follow) if follow else ""
            yield f"input {name} {_shown(old_input)} -> {_shown(new_input)}{cause}"
    old = dict(_flat(previous.settings))
    new = dict(_flat(canonical(wanted.settings)))
    for name in sorted({*old, *new}):
        if name not in old:
            yield f"setting {name} added: {new[name]}"
        elif name not in new:
            yield f"setting {name} removed, was {old[name]}"
        elif old[name] != new[name]:
            yield f"setting {name} {old[name]} -> {new[name]}"


def _cause(store: ArtifactStore, old: InputReference, new: InputReference, follow: int) -> str:
    """What first changed in the stage behind an input, in brackets; empty if none is known."""
    if old.stage is None or old.stage != new.stage or not (old.key and new.key):
        return ""
    if old.key == new.key:
        return " (made anew, with another result)"
    made, wanted = store.get(old.stage, old.key), store.get(new.stage, new.key)
    if made is None or wanted is None:
        return ""
    # Only the first cause is followed further: the chain ends at one leaf, not at a whole tree.
    first = next(changes_between(store, made, wanted, follow=follow - 1), "")
    rest = len(list(changes_between(store, made, wanted, follow=0))) - 1
    return f" (its {first}{f' and {rest} more' if rest > 0 else ''})" if first else ""


def _shown(reference: InputReference) -> str:
    digest = reference.digest[:_DIGITS_SHOWN]
    return digest if reference.source is None else f"{reference.source} {digest}"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
