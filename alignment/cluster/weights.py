"""Weights on their way from a trained policy, or a folder, to the rollout engines."""

import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from alignment.cluster.carried_folders import CarriedFolder
from alignment.errors import ModelError
from alignment.models.lora import PublishedWeight

PROBE_TOKENS = 16
"""Length of the sequence on which a rollout engine proves that it has the policy's weights."""

BUCKET_BYTES = 64 * 2**20
"""Weights travel in pieces of about this size, so that no second whole copy is needed and engines
load one piece while the policy copies the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBucket:
    """Some weights as one object in Ray's store: `{name: (dtype name, array)}`."""

    reference: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightProbe:
    """`probe_tokens`, and the log-probability of each after the first under the weights.

    Float32 arithmetic, temperature 1. Whoever loads the weights must come to the same numbers.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


def probe_tokens(vocabulary: int) -> list[int]:
    """The sequence of a vocabulary of this size that policy and engines are asked about."""
    drawn = torch.Generator().manual_seed(0)
    tokens: list[int] = torch.randint(vocabulary, (PROBE_TOKENS,), generator=drawn).tolist()
    return tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderWeights:
    """The weights in a model folder, one that the engines' hosts can read or one to fetch."""

    folder: Path | CarriedFolder


def weights_from_folder(folder: Path) -> FolderWeights:
    """Weights a generator can load instead of a policy's, to switch models without a restart.

    Raises:
        ModelError: the folder holds no safetensors weights.
    """
    safetensors_files(folder)
    return FolderWeights(folder=folder.absolute())


def put_in_store(
    weights: Sequence[PublishedWeight],
    *,
    gather: Callable[[list[Tensor]], AbstractContextManager[None]],
    keep: bool,
) -> WeightBucket | None:
    """Copy weights into Ray's object store, merging what needs it.

    Every rank calls it, because `gather` (which makes sharded parameters whole) is a collective;
    only the rank that `keep`s gets the bucket.
    """
    with gather([parameter for weight in weights for parameter in weight.parameters]):
        if not keep:
            return None
        arrays = {weight.name: _to_array(weight.value()) for weight in weights}
        return WeightBucket(reference=ray.put(arrays))


def read_bucket(bucket: WeightBucket) -> Iterator[tuple[str, Tensor]]:
    """The weights of a bucket. They share the store's memory: read them, never write."""
    for name, (dtype, array) in ray.get(bucket.reference).items():
        yield name, _from_array(dtype, array)


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight in a model folder, without reading the weights."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in safetensors_files(folder):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  (not a dict)
                shapes[name] = tuple(weights.get_slice(name).get_shape())
    return shapes


def safetensors_files(folder: Path) -> list[Path]:
    """Weight files of a model folder, sharded or not; ModelError if there is none."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    files = [folder / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelError(
            f"model folder {folder} lacks {', '.join(missing)}; name a folder with safetensors "
            "weights"
        )
    return files


def require_same_shapes(
    wanted: dict[str, tuple[int, ...]], given: dict[str, tuple[int, ...]], *, source: str
) -> None:
    """Refuse weights of another model before anything is overwritten.

    Raises:
        ModelError: names the first weight that is missing, unknown or of another shape.
    """
    for name in chain(wanted, given):
        if wanted.get(name) != given.get(name):
            raise ModelError(
                f"{source} does not fit the running rollout engine: weight {name} is "
                f"{given.get(name, 'absent')} there and {wanted.get(name, 'absent')} in the "
                "engine; start a generator on that folder instead"
            )


def in_buckets(
    weights: Iterable[PublishedWeight], *, size: int = BUCKET_BYTES
) -> Iterator[list[PublishedWeight]]:
    """Consecutive weights of about `size` bytes together."""
    bucket: list[PublishedWeight] = []
    filled = 0
    for weight in weights:
        plain = weight.parameters[0]
        own = math.prod(whole_shape(plain)) * plain.element_size()
        if bucket and filled + own > size:
            yield bucket
            bucket, filled = [], 0
        bucket.append(weight)
        filled += own
    if bucket:
        yield bucket


def whole_shape(parameter: Tensor) -> tuple[int, ...]:
    """Shape of a parameter, also if ZeRO 3 has sharded it (it is locally empty then)."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _to_array(parameter: Tensor) -> tuple[str, np.ndarray[Any, Any]]:
    tensor = parameter.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:  # numpy has no bfloat16
        return "bfloat16", tensor.view(torch.int16).numpy()
    return "float32", tensor.float().numpy()


def _from_array(dtype: str, array: np.ndarray[Any, Any]) -> Tensor:
    with warnings.catch_warnings():  # arrays in the store are read-only; the loader copies them
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor
