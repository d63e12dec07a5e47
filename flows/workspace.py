"""A stage while it is being made: where it writes, and how it is finished."""

import shutil
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alignment.errors import StoreError
from flows.durable import disk_errors, finite_json, made_folder, sync_tree, write_json
from flows.manifest import (
    MANIFEST_NAME,
    OUTPUTS_FOLDER,
    Artifact,
    OutputFile,
    StageRequest,
    artifact_as_json,
    digest_file,
)
from flows.versions import code_versions


class StageWorkspace:
    """A stage while it is being made, held by this process alone.

    `outputs/` starts empty; `checkpoints` and `journal` hold what an interrupted attempt left.
    """

    def __init__(self, request: StageRequest, folder: Path, run: str) -> None:
        self.request = request
        self.folder = folder
        self.run = run
        self._started = time.monotonic()

    @property
    def checkpoints(self) -> Path:
        """Folder of resumable state; removed when the stage is finished."""
        return made_folder(self.folder / "checkpoints")

    @property
    def journal(self) -> Path:
        """Folder of records of the work; kept."""
        return made_folder(self.folder / "journal")

    def output(self, name: str) -> Path:
        """Where to write output `name`, a file or a folder that the stage creates."""
        return made_folder(self.folder / OUTPUTS_FOLDER) / name

    def commit(
        self,
        *,
        outputs: Sequence[str],
        metrics: Mapping[str, Any] | None = None,
        versions: Mapping[str, str | None] | None = None,
    ) -> Artifact:
        """Finish the stage: digest every file, bring all to disk, write the manifest last.

        `outputs` are the names that were written below `output(...)`, neither more nor fewer.
        `versions` are those of engines as loaded by actors; this process adds its own.

        Raises:
            StoreError: an output is missing, empty or undeclared, or the disk is full. The
                stage is then not finished and its checkpoints stay.
        """
        files = _declared_files(self.folder / OUTPUTS_FOLDER, outputs, self.request.stage)
        with disk_errors(self.folder):
            artifact = Artifact(
                **self.request.as_json() | {"inputs": self.request.inputs},
                key=self.request.key,
                folder=self.folder,
                outputs={name: _output_file(name, path) for name, path in files.items()},
                metrics=finite_json(metrics or {}),
                versions=code_versions() | dict(versions or {}),
                run=self.run,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                seconds=round(time.monotonic() - self._started, 3),
            )
            sync_tree(self.folder / OUTPUTS_FOLDER)
            write_json(self.folder / MANIFEST_NAME, artifact_as_json(artifact))
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        return artifact


def clear_half_written(folder: Path) -> None:
    """Outputs of an interrupted attempt are never trusted; checkpoints and journal stay."""
    made_folder(folder)
    shutil.rmtree(folder / OUTPUTS_FOLDER, ignore_errors=True)
    for temporary in folder.glob(".*.json.*"):
        temporary.unlink(missing_ok=True)


def _declared_files(folder: Path, names: Sequence[str], stage: str) -> dict[str, Path]:
    found = sorted(folder.rglob("*"))
    links = [str(path) for path in found if path.is_symlink()]
    if links:
        raise StoreError(f"stage {stage} wrote links, whose targets may change: {', '.join(links)}")
    files = {path.relative_to(folder).as_posix(): path for path in found if path.is_file()}
    owners = {path: path.partition("/")[0] for path in files}
    missing = sorted(set(names) - set(owners.values()))
    if missing:
        raise StoreError(f"stage {stage} did not write its output {', '.join(missing)} ({folder})")
    undeclared = sorted(path for path, owner in owners.items() if owner not in names)
    if undeclared:
        raise StoreError(f"stage {stage} wrote undeclared outputs: {', '.join(undeclared)}")
    return files


def _output_file(name: str, path: Path) -> OutputFile:
    return OutputFile(path=name, sha256=digest_file(path), bytes=path.stat().st_size)
