"""What the store knows about a stage: the request, its key, and the finished artifact's manifest.

A stage is asked for by a `StageRequest`: everything that decides its result. The request's key
names the stage's folder in the store; the same request is reused, another one is done anew.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any

from pydantic import BaseModel

from alignment.errors import StoreError

MANIFEST_NAME = "manifest.json"
OUTPUTS_FOLDER = "outputs"
_READ_BYTES = 1 << 20
_EXACT_INTEGERS = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class InputReference:
    """Something a stage read, pinned by digest.

    Another stage's artifact has `stage` and `key`; anything else (a file of the user, a frozen
    round of rankings) has `source`, a short text that tells people where it came from.
    Only `digest` enters the key: where the bytes were found does not change the result.
    """

    digest: str
    stage: str | None = None
    key: str | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRequest:
    """Everything that decides a stage's result.

    `stage_version` is raised by hand when the stage's code starts to compute something else.
    `settings` holds only the settings that affect the result, as plain values or one of the
    models of `alignment.config`.
    """

    stage: str
    stage_version: int
    settings: Mapping[str, Any] | BaseModel = field(default_factory=dict)
    inputs: Mapping[str, InputReference] = field(default_factory=dict)
    seed: int = 0

    @property
    def key(self) -> str:
        """The stage's name in the store: 64 hexadecimal digits."""
        digests = {name: reference.digest for name, reference in self.inputs.items()}
        return stage_key(self.stage, self.stage_version, self.settings, digests, self.seed)

    def as_json(self) -> dict[str, Any]:
        """The request as it stands in `request.json` and in the manifest."""
        return {
            "stage": self.stage,
            "stage_version": self.stage_version,
            "settings": canonical(self.settings),
            "inputs": {name: asdict(reference) for name, reference in sorted(self.inputs.items())},
            "seed": self.seed,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFile:
    """One file of an artifact: its path below the artifact's outputs, SHA-256 and size."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A finished stage: its request, its files and what was measured while it was made.

    `outputs` maps each file's path below `<folder>/outputs` to its record, e.g. `report.json`
    or `model/config.json`; a name may also mean a folder of files, e.g. `model`.
    `seconds` is the wall time of the attempt that finished; `run` is the run that made it.
    """

    stage: str
    key: str
    folder: Path
    stage_version: int
    settings: Mapping[str, Any]
    inputs: Mapping[str, InputReference]
    seed: int
    outputs: Mapping[str, OutputFile]
    metrics: Mapping[str, Any]
    versions: Mapping[str, str | None]
    run: str
    created: str
    seconds: float

    def path(self, name: str) -> Path:
        """Where output file or folder `name` lies.

        Raises:
            StoreError: the artifact has no such output.
        """
        self._files(name)
        return self.folder / OUTPUTS_FOLDER / name

    def digest(self, name: str) -> str:
        """SHA-256 of output file `name`; of a folder, that of its listing of names and digests."""
        files = self._files(name)
        if name in self.outputs:
            return self.outputs[name].sha256
        return _digest_of_files(files, below=name)

    @property
    def digest_all(self) -> str:
        """SHA-256 of the listing of all outputs."""
        return _digest_of_files(list(self.outputs.values()))

    def reference(self, name: str | None = None) -> InputReference:
        """The artifact, or its output `name` alone, as the input of another stage."""
        digest = self.digest_all if name is None else self.digest(name)
        return InputReference(digest=digest, stage=self.stage, key=self.key)

    def _files(self, name: str) -> list[OutputFile]:
        files = [f for path, f in self.outputs.items() if path == name or _is_below(path, name)]
        if not files:
            names = sorted({path.partition("/")[0] for path in self.outputs})
            raise StoreError(
                f"{self.stage} in {self.folder} has no output {name!r}; it has {', '.join(names)}"
            )
        return files


def stage_key(
    stage: str,
    stage_version: int,
    settings: Mapping[str, Any] | BaseModel,
    inputs: Mapping[str, str],
    seed: int,
) -> str:
    """SHA-256, in hexadecimal, of everything that decides a stage's result.

    `inputs` maps each input's name to its digest. Order of keys, tuples against lists, and
    1 against 1.0 do not matter.
    """
    return digest_json(
        {
            "stage": stage,
            "stage_version": stage_version,
            "settings": settings,
            "inputs": inputs,
            "seed": seed,
        }
    )


def digest_json(value: Any) -> str:
    """SHA-256, in hexadecimal, of a value's canonical JSON."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256, in hexadecimal, of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def canonical(value: Any) -> Any:
    """`value` as JSON with one spelling for equal settings.

    Models become mappings, tuples lists, paths POSIX text, whole floats integers.

    Raises:
        TypeError: a value has no spelling in JSON, e.g. a set, a function or a NaN.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float() if math.isfinite(value):
            whole = value.is_integer() and abs(value) < _EXACT_INTEGERS
            return int(value) if whole else value
        case PurePath():
            return value.as_posix()
        case BaseModel():
            return canonical({name: getattr(value, name) for name in type(value).model_fields})
        case Mapping():
            return {_text_key(key): canonical(value[key]) for key in sorted(value)}
        case list() | tuple():
            return [canonical(item) for item in value]
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be part of a stage's key")


def artifact_as_json(artifact: Artifact) -> dict[str, Any]:
    """The manifest, without the folder: a store may be moved."""
    manifest = asdict(artifact)
    del manifest["folder"]
    manifest["outputs"] = [asdict(output) for _, output in sorted(artifact.outputs.items())]
    return manifest


def read_manifest(folder: Path) -> Artifact:
    """The artifact whose manifest lies in `folder`; its files are not looked at.

    Raises:
        StoreError: the manifest cannot be read or lacks a field.
    """
    path = folder / MANIFEST_NAME
    advice = f"delete the folder {folder} and run again, the stage is then redone"
    try:
        text = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error, advice) from error
    return manifest_from_json(text, folder, str(path), advice)


def manifest_from_json(
    text: bytes, folder: Path, where: str, advice: str = "delete it and run again"
) -> Artifact:
    """The artifact that a manifest's text describes, lying in `folder`.

    Raises:
        StoreError: the text is no JSON or lacks a field; names `where` and says `advice`.
    """
    try:
        manifest = json.loads(text)
        outputs = [OutputFile(**output) for output in manifest.pop("outputs")]
        inputs = {name: InputReference(**i) for name, i in manifest.pop("inputs").items()}
        return Artifact(
            folder=folder, outputs={o.path: o for o in outputs}, inputs=inputs, **manifest
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unreadable(where, error, advice) from error


def _unreadable(where: object, error: Exception, advice: str) -> StoreError:
    return StoreError(
        f"manifest {where} cannot be read ({type(error).__name__}: {error}); {advice}"
    )


def _text_key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"key {key!r} of type {type(key).__name__} is not text")
    return key


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(f"{folder.rstrip('/')}/")


def _digest_of_files(files: Sequence[OutputFile], below: str = "") -> str:
    prefix = f"{below.rstrip('/')}/" if below else ""
    return digest_json({file.path.removeprefix(prefix): file.sha256 for file in files})
