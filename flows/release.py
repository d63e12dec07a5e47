"""release: a run's policy as a folder that transformers and vLLM load, with card and lineage.

    model.safetensors, config.json, tokenizer...   the policy, adapters merged
    README.md                                      model card
    lineage.json, lineage.svg                      everything the policy was made of

The folder is meant to leave the house: names of labelers, single rankings, paths of this machine
and command lines stay behind.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignment.errors import StoreError
from flows.durable import disk_errors, made_folder, sync_path, sync_tree, write_json
from flows.lineage import Lineage, lineage
from flows.lineage_picture import render_picture
from flows.manifest import OUTPUTS_FOLDER, Artifact, digest_file
from flows.model_card import model_card
from flows.run_record import read_run
from flows.shared_store import store_of_run
from flows.summary import Summary, read_summary

POLICY_STAGE, MODEL_OUTPUT = "ppo", "model"
CARD, LINEAGE_JSON, LINEAGE_PICTURE = "README.md", "lineage.json", "lineage.svg"
_PRIVATE_METRICS = ("labelers", "actors")
_PRIVATE_FIELDS = ("folder",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """What a release folder holds: weights and tokenizer of `policy`, and their bytes."""

    folder: Path
    policy: Artifact
    bytes: int


def release(run_folder: Path, out: Path, *, despite_checks: bool = False) -> Released:
    """Write a finished run's policy, its card and its lineage into the new folder `out`.

    Every byte is compared with the manifest on the way. `out` appears whole or not at all.

    Raises:
        StoreError: the run is not finished, one of its checks failed (unless `despite_checks`),
            its policy is damaged or gone, or `out` exists or cannot be written.
    """
    run = read_run(run_folder)
    summary = read_summary(run_folder)
    if not despite_checks:
        _require_passed(summary)
    store = store_of_run(run)
    record = run.newest(POLICY_STAGE)
    policy = (
        store.get(POLICY_STAGE, record.finished_key) if record and record.finished_key else None
    )
    if policy is None:
        raise StoreError(
            f"the policy of run {run.name} is not in store {store.root}; run its command again, "
            "what is missing is redone"
        )
    if out.exists():
        raise StoreError(f"{out} exists already; name a new folder with --out")
    graph = lineage(store, policy)
    partial = out.with_name(f".{out.name}.partial")
    with disk_errors(partial):
        shutil.rmtree(partial, ignore_errors=True)
        made_folder(partial)
        size = _copy_model(policy, partial)
        (partial / CARD).write_text(model_card(summary, policy, graph), encoding="utf-8")
        (partial / LINEAGE_PICTURE).write_text(render_picture(public(graph)), encoding="utf-8")
        write_json(partial / LINEAGE_JSON, _public_json(graph))
        sync_tree(partial)
        partial.rename(out)
        sync_path(out.absolute().parent)
    return Released(folder=out, policy=policy, bytes=size)


def public(graph: Lineage) -> Lineage:
    """The graph without names of labelers, processes and folders of this machine."""
    artifacts = {identity: _public(artifact) for identity, artifact in graph.artifacts.items()}
    return Lineage(
        ends=tuple(artifacts[(end.stage, end.key)] for end in graph.ends),
        artifacts=artifacts,
        missing=graph.missing,
    )


def _public_json(graph: Lineage) -> dict[str, Any]:
    shown = public(graph).as_json()
    for artifact in shown["artifacts"].values():
        for name in _PRIVATE_FIELDS:
            del artifact[name]
    return shown


def _public(artifact: Artifact) -> Artifact:
    inputs = {
        name: reference
        if reference.source is None
        else replace(reference, source=_without_folders(reference.source))
        for name, reference in artifact.inputs.items()
    }
    metrics = {k: v for k, v in artifact.metrics.items() if k not in _PRIVATE_METRICS}
    settings = {name: _public_setting(value) for name, value in artifact.settings.items()}
    return replace(artifact, inputs=inputs, metrics=metrics, settings=settings)


def _public_setting(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _public_setting(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_public_setting(inner) for inner in value]
    return _without_folders(value) if isinstance(value, str) else value


def _without_folders(text: str) -> str:
    """Paths of this machine in a text, each by its last part."""
    return " ".join(
        Path(word).name if word.startswith(("/", "~")) else word for word in text.split(" ")
    )


def _require_passed(summary: Summary) -> None:
    failed = [
        f"{name} ({check.detail})" for name, check in summary.checks.items() if not check.passed
    ]
    if failed:
        raise StoreError(
            f"run {summary.run} failed its check {'; '.join(failed)}, so its policy is not "
            "released; mend the run, or release it with --despite-checks: the card then says so"
        )


def _copy_model(policy: Artifact, folder: Path) -> int:
    """The policy's model folder, each file compared with the manifest; gives its bytes."""
    size = 0
    for name, output in policy.outputs.items():
        if not name.startswith(f"{MODEL_OUTPUT}/"):
            continue
        source = policy.folder / OUTPUTS_FOLDER / name
        target = folder / name.removeprefix(f"{MODEL_OUTPUT}/")
        made_folder(target.parent)
        try:
            shutil.copyfile(source, target)
        except FileNotFoundError:
            raise StoreError(_damaged(policy, source, "is missing")) from None
        if digest_file(target) != output.sha256:
            raise StoreError(_damaged(policy, source, "has another digest than the manifest"))
        size += output.bytes
    return size


def _damaged(policy: Artifact, path: Path, what: str) -> str:
    return (
        f"the policy is damaged: {path} {what}. Put the file back, or delete the folder "
        f"{policy.folder} and run again, the stage is then redone"
    )
