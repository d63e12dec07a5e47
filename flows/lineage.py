"""From an artifact back to everything it was made of: walk the manifests down to the data."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment.errors import ConfigError
from flows.manifest import Artifact, InputReference
from flows.run_record import read_run
from flows.store import ArtifactStore

_DIGITS_SHOWN = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageNode:
    """An input of a stage, or a run's final artifact, with the inputs it was made of.

    `artifact` is None for what no stage made (a file, a round of rankings) and for a stage
    whose manifest is no longer in the store: `missing` tells them apart.
    """

    name: str
    reference: InputReference
    artifact: Artifact | None = None
    missing: bool = False
    inputs: tuple["LineageNode", ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """The node and all below it."""
        node: dict[str, Any] = {"name": self.name, "digest": self.reference.digest}
        if self.reference.source is not None:
            node["source"] = self.reference.source
        if self.reference.stage is not None:
            node |= {
                "stage": self.reference.stage,
                "key": self.reference.key,
                "missing": self.missing,
            }
        if self.artifact is not None:
            node |= {
                "run": self.artifact.run,
                "created": self.artifact.created,
                "stage_version": self.artifact.stage_version,
                "commit": self.artifact.versions.get("commit"),
                "seed": self.artifact.seed,
                "settings": dict(self.artifact.settings),
                "metrics": dict(self.artifact.metrics),
                "folder": str(self.artifact.folder),
                "inputs": [node.as_json() for node in self.inputs],
            }
        return node


def lineage(
    store: ArtifactStore, artifact: Artifact, name: str = "", digest: str | None = None
) -> LineageNode:
    """An artifact and, recursively, what it was made of, down to files and rankings."""
    reference = artifact.reference()
    return LineageNode(
        name=name or artifact.stage,
        reference=InputReference(
            digest=digest or reference.digest, stage=artifact.stage, key=artifact.key
        ),
        artifact=artifact,
        inputs=tuple(_input(store, name, ref) for name, ref in sorted(artifact.inputs.items())),
    )


def run_lineage(store: ArtifactStore, run_folder: Path) -> tuple[LineageNode, ...]:
    """The lineage of each finished artifact of a run that no other stage of the run has read.

    Raises:
        StoreError: there is no such run, or a manifest is damaged.
    """
    stages = read_run(run_folder).stages
    keys = {(stage, record.finished_key) for stage, record in stages.items() if record.finished_key}
    found = [store.get(stage, key) for stage, key in keys if key]
    artifacts = [artifact for artifact in found if artifact is not None]
    read = {(i.stage, i.key) for artifact in artifacts for i in artifact.inputs.values()}
    ends = [artifact for artifact in artifacts if (artifact.stage, artifact.key) not in read]
    return tuple(lineage(store, end) for end in sorted(ends, key=lambda a: (a.created, a.stage)))


def require_ancestor(store: ArtifactStore, *, policy: Artifact, reference: Artifact) -> None:
    """Refuse a reference model that the policy does not descend from.

    Raises:
        ConfigError: the reference is neither what the policy starts from nor among what that was
            made of; KL from it would measure how two unrelated models differ.
    """
    start = lineage(store, policy)
    if (reference.stage, reference.key) not in {
        (node.reference.stage, node.reference.key) for node in _all_nodes(start)
    }:
        raise ConfigError(
            f"the reference, {reference.stage} {reference.key[:_DIGITS_SHOWN]}, is not an ancestor "
            f"of the policy's start, {policy.stage} {policy.key[:_DIGITS_SHOWN]}; take that start "
            "or something it was made of (`alignflow lineage` lists it)"
        )


def _all_nodes(node: LineageNode) -> Iterator[LineageNode]:
    yield node
    for child in node.inputs:
        yield from _all_nodes(child)


def render_text(nodes: tuple[LineageNode, ...]) -> str:
    """The trees as indented text; what has been shown once is referred to, not repeated."""
    shown: set[tuple[str | None, str | None]] = set()
    return "\n".join(line for node in nodes for line in _render(node, "", "", shown))


def _input(store: ArtifactStore, name: str, reference: InputReference) -> LineageNode:
    if reference.stage is None or reference.key is None:
        return LineageNode(name=name, reference=reference)
    artifact = store.get(reference.stage, reference.key)
    if artifact is None:
        return LineageNode(name=name, reference=reference, missing=True)
    return lineage(store, artifact, name, reference.digest)


def _render(
    node: LineageNode,
    first: str,
    indent: str,
    shown: set[tuple[str | None, str | None]],
) -> Iterator[str]:
    identity = (node.reference.stage, node.reference.key)
    above = node.artifact is not None and identity in shown
    yield f"{first}{_headline(node)}{'  (above)' if above else ''}"
    if node.artifact is None or above:
        return
    shown.add(identity)
    facts = _facts(node.artifact)
    if facts:
        yield f"{indent}{'│' if node.inputs else ' '}  {facts}"
    for index, child in enumerate(node.inputs):
        last = index == len(node.inputs) - 1
        yield from _render(
            child, indent + ("└─ " if last else "├─ "), indent + ("   " if last else "│  "), shown
        )


def _headline(node: LineageNode) -> str:
    reference = node.reference
    digest = f"sha256 {reference.digest[:_DIGITS_SHOWN]}"
    if reference.stage is None:
        return f"{node.name}: {reference.source or 'given'}, {digest}"
    stage = "" if node.name == reference.stage else f"{node.name}: "
    where = f"{stage}{reference.stage} {(reference.key or '')[:_DIGITS_SHOWN]}"
    if node.artifact is None:
        return f"{where}, {digest}, no longer in the store"
    return f"{where}, made {node.artifact.created} by run {node.artifact.run or '?'}, {digest}"


def _facts(artifact: Artifact) -> str:
    metrics: Mapping[str, Any] = artifact.metrics
    plain = {k: v for k, v in metrics.items() if isinstance(v, int | float | str)}
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in plain.items()
    )
