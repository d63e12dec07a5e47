"""Files on S3, for machines that share no file system.

Credentials, region and endpoint are the AWS ones of the environment (AWS_ACCESS_KEY_ID, ...,
AWS_ENDPOINT_URL for other servers than Amazon's): none of them is a setting of a run, and every
machine that reads or writes there needs them in its own environment.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from alignment.errors import StoreError

_BLOCK_BYTES = 8 << 20
_CONNECT_TIMEOUT_S, _REQUEST_TIMEOUT_S, _ATTEMPTS = 5.0, 30.0, 3
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


class SharedObjects:
    """Objects below an `s3://bucket/prefix`. Its methods raise the server's own errors, which
    `told` turns into a StoreError.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.url = url.rstrip("/")
        self.bucket = parts.netloc
        self.root = f"{parts.netloc}{parts.path}".rstrip("/")
        with self.told("opening it"):
            self._files = _file_system()

    def has_bucket(self) -> bool:
        """Whether the bucket is there."""
        from pyarrow import fs

        found: bool = self._files.get_file_info(self.bucket).type != fs.FileType.NotFound
        return found

    def object_path(self, sha256: str) -> str:
        """Where a file with this content lies, with the bucket."""
        return f"{self.root}/objects/{sha256[:2]}/{sha256}"

    def read(self, path: str) -> bytes | None:
        """A whole object; None where there is none."""
        try:
            with self._files.open_input_stream(path) as stream:
                content: bytes = stream.read()
        except FileNotFoundError:
            return None
        return content

    def write(self, path: str, content: bytes) -> None:
        """A whole object."""
        with self._files.open_output_stream(path) as stream:
            stream.write(content)

    def put_file(self, source: Path, sha256: str, size: int) -> None:
        """Put a file under its content, unless it is there."""
        path = self.object_path(sha256)
        # A stream that breaks off may leave a shorter object under the name: sizes tell.
        if self._files.get_file_info(path).size != size:
            with source.open("rb") as opened, self._files.open_output_stream(path) as sink:
                while block := opened.read(_BLOCK_BYTES):
                    sink.write(block)
        there = self._files.get_file_info(path).size
        if there != size:
            raise OSError(f"{path} has {there} bytes after the upload, not {size}")

    def get_file(self, sha256: str, target: Path) -> str | None:
        """Bring the file with this content to `target`; what is wrong with it, or None."""
        digest = hashlib.sha256()
        try:
            source = self._files.open_input_stream(self.object_path(sha256))
        except FileNotFoundError:
            return "is missing"
        with source, target.open("wb") as opened:
            while block := source.read(_BLOCK_BYTES):
                digest.update(block)
                opened.write(block)
        return None if digest.hexdigest() == sha256 else "is not what its manifest says"

    def remove(self) -> None:
        """Remove every object below the prefix; nothing happens where there is none."""
        with suppress(FileNotFoundError):
            self._files.delete_dir(self.root)

    @contextmanager
    def told(self, doing: str) -> Iterator[None]:
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
