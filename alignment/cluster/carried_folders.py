"""Folders on their way between hosts that share no disk, by way of S3.

Two kinds. A model is named by its content: it stays there, and each host keeps a copy of those
that its roles use. What a role writes for the driver, or reads from it, passes through a place of
its own, which the driver empties when it has arrived.
"""

import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

from alignment.errors import StoreError
from alignment.shared_objects import SharedObjects

KEPT_MODELS = f"alignflow-models-{os.getuid()}"
"""Folder, in a host's scratch, of the models that this user's roles use."""
PASSING = f"alignflow-passing-{os.getuid()}"
"""Folder, in a host's scratch, of what this user's roles write and read on the way."""
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedFile:
    """A file of a folder: its path there, SHA-256 and size."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedFolder:
    """A folder whose files are among the objects below `url`."""

    url: str
    files: tuple[CarriedFile, ...]

    @property
    def name(self) -> str:
        """The same for the same files, 32 hexadecimal digits."""
        listing = "\n".join(f"{file.sha256} {file.path}" for file in self.files)
        return sha256(listing.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassingPlace:
    """A place on S3 where a role puts what the driver takes away."""

    url: str


def send_folder(folder: Path, url: str) -> CarriedFolder:
    """Put a folder's files among the objects below `url`, those that are not there already.

    Raises:
        StoreError: the server fails or refuses.
    """
    objects, files = SharedObjects(url), []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        file = CarriedFile(path=name, sha256=_digest(path), bytes=path.stat().st_size)
        with objects.told(f"sending {name} of {folder}"):
            objects.put_file(path, file.sha256, file.bytes)
        files.append(file)
    return CarriedFolder(url=objects.url, files=tuple(files))


def fetch_folder(carried: CarriedFolder, folder: Path) -> None:
    """Bring a folder's files to `folder`, whole; what is there already stays.

    Raises:
        StoreError: the server fails, a file there is missing or damaged, or the disk is full.
    """
    objects = SharedObjects(carried.url)
    folder.mkdir(parents=True, exist_ok=True)
    for file in carried.files:
        with _disk_told(file, folder), objects.told(f"fetching {file.path} for {folder}"):
            target = folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            problem = objects.get_file(file.sha256, target)
        if problem is not None:
            raise StoreError(
                f"shared store {objects.url}: {objects.object_path(file.sha256)}, {file.path} of "
                f"{folder}, {problem}; delete it there and run the same command again"
            )


class Carrier:
    """The driver's side: sends what roles on other hosts read, takes what they wrote."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._models: dict[Path, CarriedFolder] = {}

    def model(self, folder: Path) -> CarriedFolder:
        """A finished model folder, sent the first time it is asked for."""
        if folder not in self._models:
            self._models[folder] = send_folder(folder, self.url)
        return self._models[folder]

    @contextmanager
    def passing_place(self) -> Iterator[PassingPlace]:
        """A place that is empty before and after."""
        place = PassingPlace(url=f"{self.url}/passing/{uuid4().hex}")
        objects = SharedObjects(place.url)
        try:
            yield place
        except BaseException:
            with suppress(OSError):  # what went wrong before is what the user must see
                objects.remove()
            raise
        with objects.told("emptying it"):
            objects.remove()


class WrittenFolder:
    """Where a role writes a folder for the driver, and as what it is sent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sent: CarriedFolder | None = None


@contextmanager
def writing_to(target: Path | PassingPlace) -> Iterator[WrittenFolder]:
    """The driver's folder itself where its disk is ours too, else one that is sent at the end."""
    if isinstance(target, Path):
        yield WrittenFolder(target)
        return
    with _scratch() as folder:
        written = WrittenFolder(folder)
        yield written
        written.sent = send_folder(written.folder, target.url)


@contextmanager
def reading_from(source: Path | CarriedFolder) -> Iterator[Path]:
    """The driver's folder itself where its disk is ours too, else a copy for this process."""
    if isinstance(source, Path):
        yield source
        return
    with _scratch() as folder:
        fetch_folder(source, folder)
        yield folder


class ActorOfSomeHost:
    """What every role's actor can do where the driver's disk is not its own."""

    spec: Any

    def take_model(self, model: CarriedFolder) -> None:
        """Bring the role's model to this host; `start` then loads it from here."""
        self.spec = replace(self.spec, model_folder=kept_model(model))


def kept_model(model: Path | CarriedFolder) -> Path:
    """The model's folder on this host, fetched once for all its processes.

    It stays while a process that asked for it lives. Whoever fetches another one removes those
    that nobody uses any more.
    """
    if isinstance(model, Path):
        return model
    with _cleared_shelf(KEPT_MODELS) as shelf:
        folder = shelf / model.name
        if not folder.is_dir():
            draft = shelf / f"draft-{model.name}"
            try:
                fetch_folder(model, draft)
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)  # its disk may be full of it
                raise
            draft.rename(folder)
        _use_until_the_end(folder)
    return folder


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder of this process alone; what a killed process left in its own is removed."""
    with _cleared_shelf(PASSING) as shelf:
        folder = shelf / uuid4().hex
        folder.mkdir()
        lock = _use(folder)
    try:
        yield folder
    finally:
        os.close(lock)
        with _cleared_shelf(PASSING):  # this one with the others
            pass


@contextmanager
def _cleared_shelf(name: str) -> Iterator[Path]:
    """A folder in this host's scratch, for this process alone, without what nobody uses."""
    shelf = Path(tempfile.gettempdir()) / name
    shelf.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(shelf / "shelf.lock"):
        _remove_unused(shelf)
        yield shelf


def _use(folder: Path) -> int:
    """Hold a folder's lock, together with others, until the descriptor is closed."""
    descriptor = os.open(f"{folder}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


_use_until_the_end = cache(_use)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_unused(shelf: Path) -> None:
    for folder in [path for path in shelf.iterdir() if path.is_dir()]:
        lock = os.open(f"{folder}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
            os.unlink(f"{folder}.lock")
        except BlockingIOError:
            continue
        finally:
            os.close(lock)


@contextmanager
def _disk_told(file: CarriedFile, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{file.path} ({file.bytes} bytes) cannot be written to {folder} on "
            f"{socket.gethostname()}: {error.strerror}. Make room there; where that is the scratch "
            "of a host, TMPDIR in the environment in which Ray is started there names another"
        ) from error


def _digest(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
