"""The shape of a transformer: what decides its memory and its arithmetic.

Read from a model folder's config.json and safetensors headers, without opening a weight, or
taken from the table of public shapes.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignment.errors import ConfigError, ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A dense decoder-only transformer; all counts are numbers of scalars.

    `other_parameters` is what a folder's files hold beyond the formula (0 in the table).
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    projection_biases: bool = False
    """Biases on the query, key and value projections (Qwen2)."""
    head_norms: bool = False
    """RMSNorm on queries and keys of each head (Qwen3)."""
    other_parameters: int = 0

    @property
    def query_width(self) -> int:
        """Width of all query heads together."""
        return self.attention_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key (or value) heads together."""
        return self.kv_heads * self.head_dim

    @property
    def layer_matrices(self) -> int:
        """Weights of one layer that take part in matrix products."""
        attention = 2 * self.hidden * (self.query_width + self.kv_width)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def layer_parameters(self) -> int:
        """All of one layer: matrices, two norms, biases."""
        biases = (self.query_width + 2 * self.kv_width) if self.projection_biases else 0
        norms = 2 * self.hidden + (2 * self.head_dim if self.head_norms else 0)
        return self.layer_matrices + norms + biases

    @property
    def vocabulary_matrix(self) -> int:
        """The embedding, or the head."""
        return self.vocabulary * self.hidden

    @property
    def backbone_parameters(self) -> int:
        """Embedding, layers and last norm: what a value model is built on."""
        body = self.layers * self.layer_parameters + self.hidden
        return self.vocabulary_matrix + body + self.other_parameters

    @property
    def parameters(self) -> int:
        """The whole language model; a tied head counts once."""
        return self.backbone_parameters + (0 if self.tied else self.vocabulary_matrix)

    def kv_bytes_per_token(self, bytes_per_number: int) -> int:
        """Keys and values of one token in all layers: 2 x layers x kv heads x head width."""
        return 2 * self.layers * self.kv_width * bytes_per_number

    def first_layers(self, layers: int | None) -> "ModelShape":
        """The shape with only its first layers; all if None.

        Raises:
            ConfigError: there are fewer.
        """
        if layers is None:
            return self
        if layers > self.layers:
            raise ConfigError(
                f"`reward_model.layers` is {layers}, but {self.name} has {self.layers}; use "
                f"{self.layers} or fewer, or leave it out for all"
            )
        return replace(self, layers=layers)


def read_model_shape(folder: Path) -> ModelShape:
    """The shape of the model in a folder; weights are counted if they are there.

    Raises:
        ModelError: config.json is missing or damaged, or describes no dense decoder.
    """
    path = folder / "config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"model folder {folder} has no config.json; name a folder written by transformers' "
            "save_pretrained, or a shape with --model-shape"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise ModelError(f"{path} holds a {type(settings).__name__}; expected an object")
    shape = shape_of_settings(settings, name=folder.resolve().name, source=str(path))
    counted = count_parameters(folder)
    return shape if counted is None else _with_total(shape, counted, folder)


def shape_of_settings(settings: Mapping[str, Any], *, name: str, source: str) -> ModelShape:
    """The shape that a transformers configuration describes.

    Raises:
        ModelError: a field is missing or no positive integer, or the model has experts.
    """
    experts = [key for key in settings if "experts" in key and settings[key]]
    if experts:
        raise ModelError(f"{source}: `{experts[0]}` is set; only dense models can be planned")

    def count(key: str, default: int | None = None) -> int:
        value = settings.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(f"{source}: `{key}` is {value!r}; expected a positive integer")
        return value

    heads, hidden = count("num_attention_heads"), count("hidden_size")
    family = str(settings.get("model_type", ""))
    return ModelShape(
        name=name,
        layers=count("num_hidden_layers"),
        hidden=hidden,
        intermediate=count("intermediate_size"),
        attention_heads=heads,
        kv_heads=count("num_key_value_heads", heads),
        head_dim=count("head_dim", max(1, hidden // heads)),
        vocabulary=count("vocab_size"),
        tied=bool(settings.get("tie_word_embeddings", False)),
        projection_biases=family == "qwen2",
        head_norms=family == "qwen3",
    )


def count_parameters(folder: Path) -> int | None:
    """Scalars in the folder's safetensors files, from their headers; None without files.

    Raises:
        ModelError: a header is damaged.
    """
    whole = folder / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(folder.glob("model-*-of-*.safetensors"))
    return sum(_numbers_in(path) for path in files) if files else None


def _numbers_in(path: Path) -> int:
    """A safetensors file begins with the header's length (u64, little-endian), then JSON."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError(f"header of {length} bytes in a file of {path.stat().st_size}")
            header = json.loads(file.read(length))
        total = 0
        for name, tensor in header.items():
            if name != "__metadata__":
                numbers = 1
                for size in tensor["shape"]:
                    numbers *= size
                total += numbers
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is no safetensors file: {error}") from error
    return total


def _with_total(shape: ModelShape, counted: int, folder: Path) -> ModelShape:
    """Take the files' word; refuse if they are of another model than config.json."""
    if not 0.5 * shape.parameters <= counted <= 2.0 * shape.parameters:
        raise ModelError(
            f"the weights in {folder} hold {counted:,} numbers, but its config.json describes "
            f"{shape.parameters:,}; the folder is incomplete or mixes two models"
        )
    return replace(shape, other_parameters=counted - shape.parameters)
