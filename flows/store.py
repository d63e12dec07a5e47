"""The artifact store: finished stages by content, interrupted ones with what they have so far.

    <root>/schema.json                         version of this layout
    <root>/stages/<stage>/<key>/request.json   what is being made
    <root>/stages/<stage>/<key>/checkpoints/   resumable state, gone once the stage is finished
    <root>/stages/<stage>/<key>/journal/       append-only records of the work
    <root>/stages/<stage>/<key>/outputs/       the result
    <root>/stages/<stage>/<key>/manifest.json  written last: with it, the stage is finished
    <root>/leases/<stage>-<key>.lock           who works on it now
    <root>/runs/<name>-<digits>.json           where a run that uses this store keeps its folder
    <root>/jobs/<submission id>.json           what a Ray job is asked to do

`<key>` is the first 16 digits of the request's key; manifest and look-up compare all 64.
"""

import hashlib
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignment.errors import StoreError
from flows.durable import disk_errors, made_folder, write_json
from flows.lease import lease, shared_lease
from flows.manifest import (
    MANIFEST_NAME,
    OUTPUTS_FOLDER,
    Artifact,
    OutputFile,
    StageRequest,
    digest_file,
    read_manifest,
)
from flows.workspace import StageWorkspace, clear_half_written

SCHEMA_VERSION = 1
REQUEST_NAME = "request.json"
RUNS_FOLDER = "runs"
_FOLDER_DIGITS = 16


class ArtifactStore:
    """A folder of stages, shared by all runs that name it.

    Raises:
        StoreError: the folder is a store of another schema, or cannot be made.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        _open_schema(self.root)

    def folder(self, stage: str, key: str) -> Path:
        """Where a stage lies or would lie."""
        return self.root / "stages" / stage / key[:_FOLDER_DIGITS]

    def get(self, stage: str, key: str) -> Artifact | None:
        """The finished stage with this key, its files not looked at; None if there is none."""
        folder = self.folder(stage, key)
        if not (folder / MANIFEST_NAME).exists():
            return None
        artifact = read_manifest(folder)
        if (artifact.stage, artifact.key) != (stage, key):
            raise StoreError(
                f"{folder} holds {artifact.stage} {artifact.key}, not {stage} {key}; "
                f"delete that folder and run again, the stage is then redone"
            )
        return artifact

    def lookup(self, request: StageRequest, *, verify: bool = False) -> Artifact | None:
        """The finished stage that answers `request`, or None.

        Existence and size of every file are checked; `verify` also reads them all and compares
        digests.

        Raises:
            StoreError: the stage is damaged; names the file and what to do.
        """
        return self.at_hand(request.stage, request.key, verify=verify)

    def at_hand(self, stage: str, key: str, *, verify: bool = False) -> Artifact | None:
        """The finished stage with this key, its files here and looked at as `lookup` does."""
        artifact = self.get(stage, key)
        if artifact is not None:
            check_files(artifact, verify=verify)
        return artifact

    @property
    def where(self) -> str:
        """The address under which other processes find what is finished here."""
        return str(self.root)

    def write_note(self, name: str, content: Mapping[str, Any]) -> None:
        """Leave a small record at `where` for another process; `read_note` gives it back."""
        path = self.root / name
        with disk_errors(path.parent):
            made_folder(path.parent)
            write_json(path, content)

    @contextmanager
    def open_stage(self, request: StageRequest, *, run: str = "") -> Iterator[StageWorkspace]:
        """Work on a stage that is not finished; its folder survives an interruption.

        Raises:
            StoreError: another process works on it, or it has been finished.
        """
        folder = self.folder(request.stage, request.key)
        with lease(self.stage_lock(folder), f"stage {request.stage}"):
            if (folder / MANIFEST_NAME).exists():
                raise StoreError(
                    f"stage {request.stage} in {folder} was finished by another process; "
                    "run the same command again, it will be reused"
                )
            with disk_errors(folder):
                clear_half_written(folder)
                write_json(folder / REQUEST_NAME, request.as_json() | {"key": request.key})
            with disk_errors(folder, only_full=True):
                yield StageWorkspace(request, folder, run)

    @contextmanager
    def used_by(self, run_folder: Path | None) -> Iterator[None]:
        """Note where a run keeps its folder, if any, and let nothing be cleaned away meanwhile.

        Raises:
            StoreError: the store is being cleaned.
        """
        refusal = (
            f"store {self.root} is being cleaned by `alignflow store gc`; run the same command "
            "again when that has ended"
        )
        with shared_lease(self.cleaning_lock, refusal):
            if run_folder is not None:
                digits = hashlib.sha256(str(run_folder).encode()).hexdigest()[:8]
                note = f"{RUNS_FOLDER}/{run_folder.name}-{digits}.json"
                if not (self.root / note).exists():
                    told = {"folder": str(run_folder), "host": socket.gethostname()}
                    ArtifactStore.write_note(self, note, told)
            yield

    @property
    def cleaning_lock(self) -> Path:
        """Held together by the runs at work, and alone by what removes stages."""
        return self.root / "leases" / "cleaning.lock"

    def stage_lock(self, folder: Path) -> Path:
        """The lock of the stage in `folder`."""
        return self.root / "leases" / f"{folder.parent.name}-{folder.name}.lock"

    def is_interrupted(self, request: StageRequest) -> bool:
        """True if the stage was begun and not finished."""
        folder = self.folder(request.stage, request.key)
        return (folder / REQUEST_NAME).exists() and not (folder / MANIFEST_NAME).exists()


def check_files(artifact: Artifact, *, verify: bool = False) -> None:
    """Compare an artifact's files with its manifest: sizes, and digests if `verify`.

    Raises:
        StoreError: a file is missing or differs; names it and what to do.
    """
    for output in artifact.outputs.values():
        path = artifact.folder / OUTPUTS_FOLDER / output.path
        problem = _problem(path, output, verify)
        if problem:
            raise StoreError(
                f"stage {artifact.stage} is damaged: {path} {problem}. Put the file back, or "
                f"delete the folder {artifact.folder} and run again, the stage is then redone"
            )


def _problem(path: Path, output: OutputFile, verify: bool) -> str | None:
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if size != output.bytes:
        return f"has {size} bytes, the manifest says {output.bytes}"
    if verify and digest_file(path) != output.sha256:
        return "has another digest than the manifest"
    return None


def _open_schema(root: Path) -> None:
    path = root / "schema.json"
    try:
        if not path.exists() and not (root / "stages").exists():
            made_folder(root)
            write_json(path, {"alignflow_store": SCHEMA_VERSION})
        found = json.loads(path.read_text(encoding="utf-8"))["alignflow_store"]
    except FileNotFoundError:
        found = "missing"
    except OSError as error:
        raise StoreError(
            f"store {root} cannot be opened ({error.filename}: {error.strerror}); "
            "name a folder you may write to as `run.store`"
        ) from error
    except (ValueError, KeyError, TypeError):
        found = "unreadable"
    if found != SCHEMA_VERSION:
        raise StoreError(
            f"store {root} has schema {found}, this version reads schema {SCHEMA_VERSION}; "
            "use the version of alignflow that wrote it, or name another folder as `run.store`"
        )
