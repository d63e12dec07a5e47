"""Finished stages on S3, for machines that share no file system.

    <url>/schema.json                                   version of this layout
    <url>/objects/<first two digits>/<sha256>           files, by content
    <url>/stages/<stage>/<key>/manifest.json            put last: with it, the stage is there
    <url>/jobs/<submission id>.json                     what a Ray job is asked to do

A file is named by its content, so two writers never overwrite each other's, and what a broken
upload left is nobody's: without a manifest nothing refers to it. S3 puts an object whole or not
at all, and every byte that is fetched is compared with the manifest.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment.errors import StoreError
from alignment.shared_objects import SharedObjects
from flows.durable import disk_errors, made_folder, sync_tree, write_json
from flows.manifest import (
    MANIFEST_NAME,
    OUTPUTS_FOLDER,
    Artifact,
    OutputFile,
    artifact_as_json,
    manifest_from_json,
)

SCHEMA_VERSION = 1
_FOLDER_DIGITS = 16


class RemoteStore:
    """The finished stages below an `s3://bucket/prefix`.

    Raises:
        StoreError: the server cannot be reached, refuses, or holds another schema.
    """

    def __init__(self, url: str) -> None:
        self._objects = SharedObjects(url)
        self.url, self._told = self._objects.url, self._objects.told
        with self._told("opening it"):
            self._open_schema()

    def manifest(self, stage: str, key: str, folder: Path) -> Artifact | None:
        """The manifest of a stage, as an artifact that lies or would lie in `folder`."""
        path = self._manifest_path(stage, key)
        with self._told(f"reading the manifest of {stage}"):
            told = self._objects.read(path)
        if told is None:
            return None
        artifact = manifest_from_json(told, folder, f"{self.url} ({path})")
        if (artifact.stage, artifact.key) != (stage, key):
            raise StoreError(
                f"{path} holds {artifact.stage} {artifact.key}, not {stage} {key}; delete that "
                "object and run again"
            )
        return artifact

    def publish(self, artifact: Artifact) -> None:
        """Put a finished stage there: its files, then its manifest; nothing if it is there.

        Raises:
            StoreError: the server fails or refuses: the stage stays finished here and the next
                look-up publishes it. Or another machine has published another result.
        """
        there = self.manifest(artifact.stage, artifact.key, artifact.folder)
        if there is not None:
            self._require_same(artifact, there)
            return
        for output in artifact.outputs.values():
            with self._told(f"publishing {artifact.stage}, file {output.path}"):
                self._put_object(artifact.folder / OUTPUTS_FOLDER / output.path, output)
        told = json.dumps(artifact_as_json(artifact), ensure_ascii=False).encode()
        with self._told(f"publishing the manifest of {artifact.stage}"):
            self._objects.write(self._manifest_path(artifact.stage, artifact.key), told)

    def fetch(self, artifact: Artifact) -> Artifact:
        """Bring a stage's files into `artifact.folder`, whole or not at all; manifest last.

        The caller holds the stage's lease.

        Raises:
            StoreError: the server fails, a file there is not what the manifest says, or the disk
                is full.
        """
        folder = artifact.folder
        partial = folder.with_name(f".fetching-{folder.name}")
        with disk_errors(folder):
            shutil.rmtree(partial, ignore_errors=True)
            try:
                for output in artifact.outputs.values():
                    with self._told(f"fetching {artifact.stage}, file {output.path}"):
                        self._get_object(output, partial / output.path, artifact)
                made_folder(partial)
                sync_tree(partial)
                shutil.rmtree(folder / OUTPUTS_FOLDER, ignore_errors=True)
                made_folder(folder)
                partial.rename(folder / OUTPUTS_FOLDER)
                write_json(folder / MANIFEST_NAME, artifact_as_json(artifact))
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return artifact

    def write_note(self, name: str, content: Mapping[str, Any]) -> None:
        """Put a small record there, e.g. what a Ray job is asked to do."""
        with self._told(f"writing {name}"):
            self._objects.write(
                f"{self._objects.root}/{name}", json.dumps(content, ensure_ascii=False).encode()
            )

    def read_note(self, name: str) -> bytes | None:
        """A small record that `write_note` has put there; None if there is none."""
        with self._told(f"reading {name}"):
            return self._objects.read(f"{self._objects.root}/{name}")

    def _open_schema(self) -> None:
        if not self._objects.has_bucket():
            raise StoreError(
                f"shared store {self.url}: there is no bucket {self._objects.bucket}; make it, or "
                "mend `run.shared_store`"
            )
        path = f"{self._objects.root}/schema.json"
        told = self._objects.read(path)
        if told is None:
            self._objects.write(
                path, json.dumps({"alignflow_shared_store": SCHEMA_VERSION}).encode()
            )
            return
        try:
            found = json.loads(told)["alignflow_shared_store"]
        except (ValueError, KeyError, TypeError):
            found = "unreadable"
        if found != SCHEMA_VERSION:
            raise StoreError(
                f"shared store {self.url} has schema {found}, this version reads schema "
                f"{SCHEMA_VERSION}; use the version of alignflow that wrote it, or name another "
                "prefix as `run.shared_store`"
            )

    def _require_same(self, here: Artifact, there: Artifact) -> None:
        if here.digest_all != there.digest_all:
            raise StoreError(
                f"{self.url} has another result for {here.stage} {here.key}, made {there.created} "
                f"by run {there.run}: two machines did the same work. That one counts: delete "
                f"{here.folder} and run again, it is then fetched"
            )

    def _manifest_path(self, stage: str, key: str) -> str:
        return f"{self._objects.root}/stages/{stage}/{key[:_FOLDER_DIGITS]}/{MANIFEST_NAME}"

    def _put_object(self, source: Path, output: OutputFile) -> None:
        self._objects.put_file(source, output.sha256, output.bytes)

    def _get_object(self, output: OutputFile, target: Path, artifact: Artifact) -> None:
        made_folder(target.parent)
        problem = self._objects.get_file(output.sha256, target)
        if problem is not None:
            raise self._damaged(output, artifact, problem)

    def _damaged(self, output: OutputFile, artifact: Artifact, what: str) -> StoreError:
        path, manifest = (
            self._objects.object_path(output.sha256),
            self._manifest_path(artifact.stage, artifact.key),
        )
        return StoreError(
            f"shared store {self.url} is damaged: {path}, file {output.path} of {artifact.stage}, "
            f"{what}; delete it and {manifest} and run again, the stage is then redone"
        )
