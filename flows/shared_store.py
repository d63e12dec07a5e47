"""A local store whose finished stages are also on S3: work is done here, results are for all.

Stages are done, resumed and read in the local folder, as engines need files. What is finished is
published; what another machine has finished is fetched at the look-up. Checkpoints and journals
stay on the machine that works. Leases are the local folder's: two machines that do the same stage
at once are told by the second one's publishing, not before.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignment.config import RunConfig
from alignment.errors import StoreError
from flows.lease import lease
from flows.manifest import Artifact, StageRequest
from flows.remote_store import RemoteStore
from flows.run_record import RunFile
from flows.store import ArtifactStore, check_files
from flows.workspace import StageWorkspace

_FETCHED_WITHIN_S = 600.0
"""How long a process waits for another one of this machine that fetches the same stage."""


def open_store(config: RunConfig) -> ArtifactStore:
    """The store that a run's settings name.

    Raises:
        StoreError: it is of another schema, or cannot be made or reached.
    """
    if config.shared_store is None:
        return ArtifactStore(config.store)
    return SharedStore(config.store, RemoteStore(config.shared_store))


def store_of_run(run: RunFile) -> ArtifactStore:
    """The store that a run has used, as its record tells."""
    shared = run.config["run"].get("shared_store")
    root = Path(run.store)
    return ArtifactStore(root) if shared is None else SharedStore(root, RemoteStore(shared))


def read_note(where: str, name: str) -> Any:
    """What `write_note` has left in the store at this address.

    Raises:
        StoreError: there is no such note, or the store cannot be reached.
    """
    if where.startswith("s3://"):
        content = RemoteStore(where).read_note(name)
    else:
        path = Path(where) / name
        content = path.read_bytes() if path.exists() else None
    if content is None:
        raise StoreError(
            f"there is no {name} in the store {where} as this machine sees it. Both sides need "
            "one store: a folder that both see at the same path, or `run.shared_store`"
        )
    return json.loads(content)


class SharedStore(ArtifactStore):
    """A folder of stages, of which the finished ones are also in `remote`."""

    def __init__(self, root: Path, remote: RemoteStore) -> None:
        super().__init__(root)
        self.remote = remote

    def get(self, stage: str, key: str) -> Artifact | None:
        """The finished stage with this key, here or there; its files may be there only."""
        return super().get(stage, key) or self.remote.manifest(stage, key, self.folder(stage, key))

    @property
    def where(self) -> str:
        """The URL of the shared store."""
        return self.remote.url

    def write_note(self, name: str, content: Mapping[str, Any]) -> None:
        """Leave a small record on S3 for another machine."""
        self.remote.write_note(name, content)

    def at_hand(self, stage: str, key: str, *, verify: bool = False) -> Artifact | None:
        """The finished stage with this key, fetched if need be, or None.

        What is finished here and not yet there, because publishing failed, is published.
        """
        here = super().get(stage, key)
        if here is None:
            there = self.get(stage, key)
            if there is None:
                return None
            lock = self.stage_lock(there.folder)
            with lease(lock, f"stage {stage}", wait_s=_FETCHED_WITHIN_S):
                here = super().get(stage, key)  # somebody may have fetched it since
                if here is None:
                    return self.remote.fetch(there)
        check_files(here, verify=verify)
        self.remote.publish(here)
        return here

    @contextmanager
    def open_stage(self, request: StageRequest, *, run: str = "") -> Iterator[StageWorkspace]:
        """Work on a stage; once it is committed it is published, while it is still held."""
        with super().open_stage(request, run=run) as workspace:
            yield workspace
            finished = super().get(request.stage, request.key)
            if finished is not None:
                self.remote.publish(finished)
