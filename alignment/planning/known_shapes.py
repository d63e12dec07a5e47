"""Shapes of public dense models, so that a run can be planned without weights at hand.

Facts from the `config.json` that each publisher ships with the model (hub ids below). A test
holds the parameter counts that follow from them to the published ones.
"""

import re
from pathlib import Path

from alignment.errors import ConfigError
from alignment.planning.model_shapes import ModelShape, read_model_shape

TINY = "tiny"
EMBEDDED = "smollm2-135m-instruct"


def _shape(
    name: str, layers: int, hidden: int, intermediate: int, heads: tuple[int, int, int],
    vocabulary: int, *, tied: bool = False,
) -> ModelShape:  # fmt: skip
    """`heads`: attention heads, key-value heads, width of a head."""
    return ModelShape(
        name=name,
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        attention_heads=heads[0],
        kv_heads=heads[1],
        head_dim=heads[2],
        vocabulary=vocabulary,
        tied=tied,
        projection_biases=name.startswith("qwen2"),
        head_norms=name.startswith("qwen3"),
    )


KNOWN_SHAPES = {
    shape.name: shape
    for shape in (
        # alignment.models.tiny
        _shape(TINY, 2, 64, 128, (2, 1, 32), 259, tied=True),
        # HuggingFaceTB/SmolLM2-*
        _shape("smollm2-135m", 30, 576, 1536, (9, 3, 64), 49152, tied=True),
        _shape("smollm2-360m", 32, 960, 2560, (15, 5, 64), 49152, tied=True),
        _shape("smollm2-1.7b", 24, 2048, 8192, (32, 32, 64), 49152, tied=True),
        # Qwen/Qwen2.5-*
        _shape("qwen2.5-0.5b", 24, 896, 4864, (14, 2, 64), 151936, tied=True),
        _shape("qwen2.5-1.5b", 28, 1536, 8960, (12, 2, 128), 151936, tied=True),
        _shape("qwen2.5-3b", 36, 2048, 11008, (16, 2, 128), 151936, tied=True),
        _shape("qwen2.5-7b", 28, 3584, 18944, (28, 4, 128), 152064),
        _shape("qwen2.5-14b", 48, 5120, 13824, (40, 8, 128), 152064),
        _shape("qwen2.5-32b", 64, 5120, 27648, (40, 8, 128), 152064),
        _shape("qwen2.5-72b", 80, 8192, 29568, (64, 8, 128), 152064),
        # meta-llama/Llama-*, codellama/CodeLlama-34b-hf
        _shape("llama-2-7b", 32, 4096, 11008, (32, 32, 128), 32000),
        _shape("llama-2-13b", 40, 5120, 13824, (40, 40, 128), 32000),
        _shape("codellama-34b", 48, 8192, 22016, (64, 8, 128), 32000),
        _shape("llama-2-70b", 80, 8192, 28672, (64, 8, 128), 32000),
        _shape("llama-3.2-1b", 16, 2048, 8192, (32, 8, 64), 128256, tied=True),
        _shape("llama-3.2-3b", 28, 3072, 8192, (24, 8, 128), 128256, tied=True),
        _shape("llama-3.1-8b", 32, 4096, 14336, (32, 8, 128), 128256),
        _shape("llama-3.1-70b", 80, 8192, 28672, (64, 8, 128), 128256),
        # mistralai/Mistral-7B-v0.1
        _shape("mistral-7b", 32, 4096, 14336, (32, 8, 128), 32000),
    )
}

_SUFFIXES = re.compile(r"(-hf|-chat|-instruct|-base|-v\d[\d.]*)+$")


def known_shape(name: str) -> ModelShape | None:
    """The shape of a table entry or of a hub id like Qwen/Qwen2.5-7B-Instruct; None if unknown."""
    plain = _SUFFIXES.sub("", name.rsplit("/", 1)[-1].lower()).removeprefix("meta-")
    return KNOWN_SHAPES.get(plain)


def shape_named(name: str) -> ModelShape:
    """The table's entry.

    Raises:
        ConfigError: there is none; lists what there is.
    """
    shape = known_shape(name)
    if shape is None:
        raise ConfigError(f"model shape {name!r} is not known; accepted: {', '.join(KNOWN_SHAPES)}")
    return shape


def shape_of_source(source: str) -> ModelShape | None:
    """The shape of a `model.source`: a folder's own, or the table's; None if neither tells.

    Raises:
        ModelError: the folder's config.json cannot be used.
    """
    folder = Path(source).expanduser()
    if source != TINY and folder.is_dir():
        return read_model_shape(folder)
    return known_shape(source)
