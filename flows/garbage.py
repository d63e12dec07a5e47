"""What a store keeps that no run needs any more, and its removal.

Kept is whatever the lineage of a run reaches whose folder still exists, whatever was begun and
not finished, and whatever somebody holds at the moment. People's labels, runs' folders and the
server's database are no stages: nothing here looks at them.
"""

import json
import shutil
import socket
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alignment.errors import StoreError
from flows.lease import lease, shared_lease
from flows.lineage import Identity, lineage
from flows.manifest import MANIFEST_NAME, Artifact, InputReference, read_manifest
from flows.run_record import RUN_NAME, read_run, stage_of
from flows.store import REQUEST_NAME, RUNS_FOLDER, ArtifactStore

_REMOVED = ".removed-"

Why = Literal["needed", "unfinished", "unknown run", "unneeded", "left over"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One folder of the store: a stage, what it weighs, and why it stays or goes.

    `run` and `created` are those of a finished stage; `key` is the folder's name, its first
    digits.
    """

    folder: Path
    stage: str
    key: str
    bytes: int
    why: Why
    run: str = ""
    created: str = ""

    @property
    def removable(self) -> bool:
        """True if nothing needs it."""
        return self.why in ("unneeded", "left over")


def look_through(
    store: ArtifactStore,
    runs: Iterable[Path] = (),
    *,
    forget: Sequence[str] = (),
    unfinished: bool = False,
) -> list[Found]:
    """Every stage of the store, and whether it may go. Changes nothing.

    `runs` are folders of runs besides those that the store has noted; `forget` names runs whose
    folders are out of sight and shall no longer count. `unfinished` lets interrupted stages go
    too, where no run is on them.

    Raises:
        StoreError: a manifest or a run's record is damaged, or a run's folder is out of sight:
            what that run needs is then not known.
    """
    kept_runs, known_names = _runs(store, runs, forget)
    folders = sorted(path for path in (store.root / "stages").glob("*/*") if path.is_dir())
    left_over = [folder for folder in folders if folder.name.startswith(_REMOVED)]
    stages = [folder for folder in folders if not folder.name.startswith(".")]
    finished = {f: read_manifest(f) for f in stages if (f / MANIFEST_NAME).exists()}
    on_it = {store.folder(stage, key) for folder in kept_runs for stage, key in _keys(folder)}
    begun = [f for f in stages if f not in finished and (f in on_it or not unfinished)]
    foreign = [f for f, artifact in finished.items() if artifact.run not in known_names]
    needed = _reached(
        store,
        [artifact for folder, artifact in finished.items() if folder in on_it or folder in foreign],
        [reference for folder in begun for reference in _inputs_of_request(folder)],
    )

    def why(folder: Path) -> Why:
        if folder in left_over:
            return "left over"
        if folder in begun:
            return "unfinished"
        if folder in foreign:
            return "unknown run"
        return "needed" if folder in needed else "unneeded"

    return [_found(folder, finished.get(folder), why(folder)) for folder in (*left_over, *stages)]


def remove(store: ArtifactStore, found: Sequence[Found]) -> list[Found]:
    """Remove what `look_through` found removable; gives what is really gone.

    A stage that somebody holds by now stays. A kill at any moment leaves each stage either whole
    or out of the way, to be removed the next time.
    """
    gone = []
    for item in found:
        if not item.removable:
            continue
        if item.why == "left over":
            shutil.rmtree(item.folder)
        elif not _removed(store, item.folder):
            continue
        gone.append(item)
    return gone


def cleaning(store: ArtifactStore) -> AbstractContextManager[None]:
    """Held while stages are looked through and removed: no run can start or be at work.

    Raises:
        StoreError: a run is at work.
    """
    refusal = (
        f"a run is at work with store {store.root}, so nothing can be removed; wait for it to "
        "end, or stop it, and run the same command again. --dry-run works at any time"
    )
    return shared_lease(store.cleaning_lock, refusal, alone=True)


def _removed(store: ArtifactStore, folder: Path) -> bool:
    try:
        with lease(store.stage_lock(folder), f"stage {folder.parent.name}"):
            aside = folder.with_name(f"{_REMOVED}{folder.name}")
            folder.rename(aside)
            shutil.rmtree(aside)
    except StoreError:  # somebody works on it
        return False
    return True


def _runs(
    store: ArtifactStore, runs: Iterable[Path], forget: Sequence[str]
) -> tuple[list[Path], set[str]]:
    """Folders of the runs that are kept, and the names of all runs that ever used the store."""
    kept = {
        folder.absolute(): folder.name
        for parent in runs
        for folder in parent.glob("*")
        if (folder / RUN_NAME).exists() and Path(read_run(folder).store) == store.root
    }
    names = set(kept.values()) | set(forget)
    for note in sorted((store.root / RUNS_FOLDER).glob("*.json")):
        told = json.loads(note.read_text(encoding="utf-8"))
        folder = Path(told["folder"])
        names.add(folder.name)
        if (folder / RUN_NAME).exists():
            kept[folder] = folder.name
        elif folder.name not in forget:
            _require_deleted(folder, told["host"])
    return sorted(kept), names


def _require_deleted(folder: Path, host: str) -> None:
    """A run's folder that is away on purpose differs from one that cannot be seen from here."""
    if folder.parent.is_dir() and host == socket.gethostname():
        return
    raise StoreError(
        f"the folder {folder} of run {folder.name} (host {host}) cannot be seen from here, so "
        "what it needs is not known. Mount it or clean the store on that host; if the run is "
        f"gone for good, add --forget {folder.name}"
    )


def _keys(run_folder: Path) -> Iterable[Identity]:
    for name, record in read_run(run_folder).stages.items():
        yield from ((stage_of(name), key) for key in (record.key, record.finished_key) if key)


def _inputs_of_request(folder: Path) -> list[InputReference]:
    try:
        request = json.loads((folder / REQUEST_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return [InputReference(**reference) for reference in request["inputs"].values()]


def _reached(
    store: ArtifactStore, artifacts: Sequence[Artifact], references: Iterable[InputReference]
) -> set[Path]:
    read = [store.get(r.stage, r.key) for r in references if r.stage and r.key]
    graph = lineage(store, *artifacts, *(artifact for artifact in read if artifact is not None))
    return {artifact.folder for artifact in graph.artifacts.values()}


def _found(folder: Path, artifact: Artifact | None, why: Why) -> Found:
    return Found(
        folder=folder,
        stage=folder.parent.name,
        key=folder.name.removeprefix(_REMOVED),
        bytes=sum(p.lstat().st_size for p in folder.rglob("*") if p.is_file()),
        why=why,
        run=artifact.run if artifact else "",
        created=artifact.created if artifact else "",
    )
