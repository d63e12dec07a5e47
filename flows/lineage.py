"""From an artifact back to everything it was made of: walk the manifests down to the data.

What is shared is kept once: a lineage is a graph of artifacts by stage and key, and each manifest
is read a single time however many stages have read its artifact.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignment.errors import ConfigError
from alignment.records import Ranking
from flows.manifest import Artifact, InputReference
from flows.run_record import read_run, stage_of
from flows.store import ArtifactStore

SCHEMA_VERSION = 1
RANKINGS_OUTPUT = "rankings.parquet"
"""Under this name the stage `preferences` keeps the rankings it was made of."""
_DIGITS_SHOWN = 12

Identity = tuple[str, str]
"""Stage and key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Artifacts and all they were made of.

    `ends` are what the walk began with; `artifacts` all that were found, the nearest first;
    `missing` those that a manifest names and the store no longer has.
    """

    ends: tuple[Artifact, ...]
    artifacts: Mapping[Identity, Artifact]
    missing: frozenset[Identity]

    def behind(self, reference: InputReference) -> Artifact | None:
        """The artifact that a reference means; None for a file, a round, or a missing stage."""
        if reference.stage is None or reference.key is None:
            return None
        return self.artifacts.get((reference.stage, reference.key))

    def as_json(self, *, rankings: bool = False) -> dict[str, Any]:
        """The graph for programs; an artifact's name in it is `stage/key`.

        `rankings` adds each ranking behind the stage `preferences`, read from its outputs.
        """
        artifacts = {name_of(artifact): _as_json(artifact) for artifact in self.artifacts.values()}
        if rankings:
            for artifact in self.artifacts.values():
                if RANKINGS_OUTPUT in artifact.outputs:
                    artifacts[name_of(artifact)]["rankings"] = [
                        asdict(ranking) for ranking in rankings_of(artifact)
                    ]
        return {
            "schema_version": SCHEMA_VERSION,
            "ends": [name_of(artifact) for artifact in self.ends],
            "artifacts": artifacts,
            "missing": sorted(f"{stage}/{key}" for stage, key in self.missing),
        }


def name_of(artifact: Artifact) -> str:
    """An artifact's name in a lineage's JSON."""
    return f"{artifact.stage}/{artifact.key}"


def lineage(store: ArtifactStore, *ends: Artifact) -> Lineage:
    """Artifacts and, down to files and rankings, what they were made of.

    Raises:
        StoreError: a manifest is damaged.
    """
    artifacts = {(end.stage, end.key): end for end in ends}
    missing: set[Identity] = set()
    to_read = list(artifacts.values())
    for artifact in to_read:  # grows while it is walked
        for identity in _stages_read(artifact):
            if identity in artifacts or identity in missing:
                continue
            found = store.get(*identity)
            if found is None:
                missing.add(identity)
            else:
                artifacts[identity] = found
                to_read.append(found)
    return Lineage(ends=ends, artifacts=artifacts, missing=frozenset(missing))


def run_lineage(store: ArtifactStore, run_folder: Path) -> Lineage:
    """The lineage of each finished artifact of a run that no other stage of the run has read.

    Raises:
        StoreError: there is no such run, or a manifest is damaged.
    """
    stages = read_run(run_folder).stages
    keys = {(stage_of(name), record.finished_key) for name, record in stages.items()}
    found = [store.get(stage, key) for stage, key in keys if key]
    artifacts = [artifact for artifact in found if artifact is not None]
    read = {identity for artifact in artifacts for identity in _stages_read(artifact)}
    ends = [artifact for artifact in artifacts if (artifact.stage, artifact.key) not in read]
    return lineage(store, *sorted(ends, key=lambda a: (a.created, a.stage)))


def require_ancestor(store: ArtifactStore, *, policy: Artifact, reference: Artifact) -> None:
    """Refuse a reference model that the policy does not descend from.

    Raises:
        ConfigError: the reference is neither what the policy starts from nor among what that was
            made of; KL from it would measure how two unrelated models differ.
    """
    if (reference.stage, reference.key) not in lineage(store, policy).artifacts:
        raise ConfigError(
            f"the reference, {reference.stage} {reference.key[:_DIGITS_SHOWN]}, is not an ancestor "
            f"of the policy's start, {policy.stage} {policy.key[:_DIGITS_SHOWN]}; take that start "
            "or something it was made of (`alignflow lineage` lists it)"
        )


def rankings_of(artifact: Artifact) -> tuple[Ranking, ...]:
    """Each ranking that a `preferences` artifact was made of."""
    from alignment.data.tables import read_records

    return read_records(artifact.path(RANKINGS_OUTPUT), Ranking)


def _stages_read(artifact: Artifact) -> Iterable[Identity]:
    for reference in artifact.inputs.values():
        if reference.stage is not None and reference.key is not None:
            yield reference.stage, reference.key


def _as_json(artifact: Artifact) -> dict[str, Any]:
    return {
        "stage": artifact.stage,
        "key": artifact.key,
        "digest": artifact.digest_all,
        "run": artifact.run,
        "created": artifact.created,
        "seconds": artifact.seconds,
        "stage_version": artifact.stage_version,
        "commit": artifact.versions.get("commit"),
        "seed": artifact.seed,
        "settings": dict(artifact.settings),
        "metrics": dict(artifact.metrics),
        "folder": str(artifact.folder),
        "inputs": {
            name: {field: value for field, value in asdict(reference).items() if value is not None}
            for name, reference in sorted(artifact.inputs.items())
        },
    }
