"""Finished stages on S3, for machines that share no file system.

    <url>/schema.json                                   version of this layout
    <url>/objects/<first two digits>/<sha256>           files, by content
    <url>/stages/<stage>/<key>/manifest.json            put last: with it, the stage is there
    <url>/jobs/<submission id>.json                     what a Ray job is asked to do

A file is named by its content, so two writers never overwrite each other's, and what a broken
upload left is nobody's: without a manifest nothing refers to it. S3 puts an object whole or not
at all, and every byte that is fetched is compared with the manifest.

Credentials, region and endpoint are the AWS ones of the environment (AWS_ACCESS_KEY_ID, ...,
AWS_ENDPOINT_URL for other servers than Amazon's): none of them is a setting of a run.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from alignment.errors import StoreError
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
_BLOCK_BYTES = 8 << 20
_CONNECT_TIMEOUT_S, _REQUEST_TIMEOUT_S, _ATTEMPTS = 5.0, 30.0, 3
_FOLDER_DIGITS = 16
_ADVICE = (
    ("NO_SUCH_BUCKET", "make the bucket, or mend `run.shared_store`"),
    (
        "ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE|403|TOKEN",
        "check the AWS credentials (names "
        "in the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, "
        "AWS_PROFILE) and that they may read and write there",
    ),
    (
        "NETWORK_CONNECTION|curlCode|TIMEOUT|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE",
        "see that the server is up and reachable (AWS_ENDPOINT_URL, AWS_REGION)",
    ),
)


class RemoteStore:
    """The finished stages below an `s3://bucket/prefix`.

    Raises:
        StoreError: the server cannot be reached, refuses, or holds another schema.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.url = url.rstrip("/")
        self._root = f"{parts.netloc}{parts.path}".rstrip("/")
        with self._told("opening it"):
            self._files = _file_system()
            self._open_schema(parts.netloc)

    def manifest(self, stage: str, key: str, folder: Path) -> Artifact | None:
        """The manifest of a stage, as an artifact that lies or would lie in `folder`."""
        path = self._manifest_path(stage, key)
        with self._told(f"reading the manifest of {stage}"):
            told = self._read(path)
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
            self._write(self._manifest_path(artifact.stage, artifact.key), told)

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
            self._write(f"{self._root}/{name}", json.dumps(content, ensure_ascii=False).encode())

    def read_note(self, name: str) -> bytes | None:
        """A small record that `write_note` has put there; None if there is none."""
        with self._told(f"reading {name}"):
            return self._read(f"{self._root}/{name}")

    def _open_schema(self, bucket: str) -> None:
        from pyarrow import fs

        if self._files.get_file_info(bucket).type == fs.FileType.NotFound:
            raise StoreError(
                f"shared store {self.url}: there is no bucket {bucket}; make it, or mend "
                "`run.shared_store`"
            )
        path = f"{self._root}/schema.json"
        told = self._read(path)
        if told is None:
            self._write(path, json.dumps({"alignflow_shared_store": SCHEMA_VERSION}).encode())
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
        return f"{self._root}/stages/{stage}/{key[:_FOLDER_DIGITS]}/{MANIFEST_NAME}"

    def _object_path(self, output: OutputFile) -> str:
        return f"{self._root}/objects/{output.sha256[:2]}/{output.sha256}"

    def _put_object(self, source: Path, output: OutputFile) -> None:
        path = self._object_path(output)
        # A stream that breaks off may leave a shorter object under the name: sizes tell.
        if self._files.get_file_info(path).size != output.bytes:
            with source.open("rb") as file, self._files.open_output_stream(path) as sink:
                while block := file.read(_BLOCK_BYTES):
                    sink.write(block)
        size = self._files.get_file_info(path).size
        if size != output.bytes:
            raise OSError(f"{path} has {size} bytes after the upload, not {output.bytes}")

    def _get_object(self, output: OutputFile, target: Path, artifact: Artifact) -> None:
        made_folder(target.parent)
        digest = hashlib.sha256()
        try:
            source = self._files.open_input_stream(self._object_path(output))
        except FileNotFoundError:
            raise self._damaged(output, artifact, "is missing") from None
        with source, target.open("wb") as file:
            while block := source.read(_BLOCK_BYTES):
                digest.update(block)
                file.write(block)
        if digest.hexdigest() != output.sha256:
            raise self._damaged(output, artifact, "is not what its manifest says")

    def _damaged(self, output: OutputFile, artifact: Artifact, what: str) -> StoreError:
        path, manifest = (
            self._object_path(output),
            self._manifest_path(artifact.stage, artifact.key),
        )
        return StoreError(
            f"shared store {self.url} is damaged: {path}, file {output.path} of {artifact.stage}, "
            f"{what}; delete it and {manifest} and run again, the stage is then redone"
        )

    def _read(self, path: str) -> bytes | None:
        try:
            with self._files.open_input_stream(path) as stream:
                content: bytes = stream.read()
        except FileNotFoundError:
            return None
        return content

    def _write(self, path: str, content: bytes) -> None:
        with self._files.open_output_stream(path) as stream:
            stream.write(content)

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        """Turn the server's refusals into a StoreError that says what to do."""
        try:
            yield
        except OSError as error:
            text = " ".join(str(error).split())
            if not _from_server(error):
                raise
            advice = next((do for found, do in _ADVICE if re.search(found, text)), "")
            raise StoreError(
                f"shared store {self.url}: {doing} failed ({text}); "
                f"{advice or 'see what the server says'}. Then run the same command again: "
                "finished stages are kept here, and nothing half-done counts there"
            ) from error


def _from_server(error: OSError) -> bool:
    """Errors of the local disk carry a number, those of the server do not."""
    return error.errno is None


def _file_system() -> Any:
    from pyarrow import fs

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    where: dict[str, Any] = {}
    if endpoint:
        parts = urlsplit(endpoint if "//" in endpoint else f"https://{endpoint}")
        where = {"endpoint_override": parts.netloc, "scheme": parts.scheme}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region or endpoint:
        where["region"] = region or "us-east-1"
    return fs.S3FileSystem(
        **where,
        connect_timeout=_CONNECT_TIMEOUT_S,
        request_timeout=_REQUEST_TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        background_writes=False,
    )
