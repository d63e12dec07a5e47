"""Low-rank adapters around a frozen model: added, switched off, merged.

    y = W x + (alpha / r) B A dropout(x)

(Hu et al. 2021, arXiv 2106.09685, eq. 3 and section 4.1), with W frozen, A [r, in] random and
B [out, r] zero at first, so an adapted model begins as its base to the bit. The layers are those
of the peft library, which is loaded only where adapters are asked for. By default every linear
layer of every block is adapted (Dettmers et al. 2023, arXiv 2305.14314, section 4).
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignment.config import LoRAConfig
from alignment.errors import ModelError

ADAPTER = "default"
"""peft's name for the one adapter of a layer."""

_SPLIT = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FAMILY_TARGETS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2"), _SPLIT),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), _SPLIT),
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    "gpt_neox": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
}
"""By `model_type`: the linear layers of a block, as that family's code names them."""


@dataclass(frozen=True, slots=True)
class PublishedWeight:
    """A weight of the plain model under its plain name, which may have to be merged first.

    `parameters` are what it is made of: [W], or [W, A, B] under an adapter. Under ZeRO 3 they must
    be made whole before `value()`.
    """

    name: str
    parameters: tuple[Tensor, ...]
    layer: Any = None

    def value(self) -> Tensor:
        """W itself, or a new tensor W + (alpha / r) B A; training weights stay as they are."""
        weight = self.parameters[0].detach()
        if self.layer is None:
            return weight
        with torch.no_grad():
            merged: Tensor = weight + self.layer.get_delta_weight(ADAPTER)
        return merged


@dataclass(frozen=True, slots=True)
class Adapters:
    """The adapted layers of a model by name; without any, every method leaves things alone."""

    layers: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def off(self) -> Iterator[None]:
        """The base alone for a while; no gradients in here."""
        with torch.no_grad():
            for layer in self.layers.values():
                layer.enable_adapters(False)
            try:
                yield
            finally:
                for layer in self.layers.values():
                    layer.enable_adapters(True)

    @property
    def have_dropout(self) -> bool:
        """Whether training drops out some of the adapters' inputs."""
        parts = (part for layer in self.layers.values() for part in layer.lora_dropout.modules())
        return any(isinstance(part, nn.Dropout) for part in parts)

    @contextmanager
    def dropout(self) -> Iterator[None]:
        """Dropout of the adapters' inputs on for a while; it is off otherwise."""
        for layer in self.layers.values():
            layer.lora_dropout.train()
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.lora_dropout.eval()


NO_ADAPTERS = Adapters()


def add_adapters(model: Any, config: LoRAConfig | None, *, seed: int) -> Adapters:
    """Freeze a transformers model and put adapters into it, in place.

    Args:
        model: a causal language model or a backbone.
        config: rank, scale, dropout and targets; nothing is done if None.
        seed: draws A; B is zero.

    Raises:
        ModelError: a target is not a linear layer of the model, or the family is unknown and no
            targets are given; names the linear layers there are.
    """
    if config is None:
        return NO_ADAPTERS
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    settings = LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,  # peft's annotation says int; it only divides by it
        lora_dropout=config.dropout,
        target_modules=list(_targets(model, config)),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, model, adapter_name=ADAPTER)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    for layer in layers.values():
        layer.lora_dropout.eval()
    return Adapters(layers)


def published_weights(model: nn.Module, adapters: Adapters) -> Iterator[PublishedWeight]:
    """Each weight of the plain model once (a tied head is not repeated), in a fixed order."""
    own = {
        id(p)
        for layer in adapters.layers.values()
        for name, p in layer.named_parameters()
        if not name.startswith("base_layer.")
    }
    for name, parameter in model.named_parameters():
        owner, _, kind = name.rpartition(".base_layer.")
        if id(parameter) in own:
            continue
        if owner not in adapters.layers:
            yield PublishedWeight(name, (parameter,))
        elif kind == "weight":
            layer = adapters.layers[owner]
            pair = (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight)
            yield PublishedWeight(f"{owner}.weight", (parameter, *pair), layer)
        else:
            yield PublishedWeight(f"{owner}.{kind}", (parameter,))


def save_merged(model: Any, adapters: Adapters, folder: Path) -> None:
    """Write the plain model with adapters merged, as a folder that transformers and vLLM load."""
    if not adapters.layers:
        model.save_pretrained(folder)
        return
    merged = {weight.name: weight.value() for weight in published_weights(model, adapters)}
    buffers = {name for name, _ in model.named_buffers()}
    kept = {name: value for name, value in model.state_dict().items() if name in buffers}
    model.save_pretrained(folder, state_dict=merged | kept)


def base_digest(folder: Path) -> str:
    """sha256 over the weights in a model folder: what a checkpoint of adapters alone rests on."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()


def _targets(model: Any, config: LoRAConfig) -> tuple[str, ...]:
    family = str(model.config.model_type)
    linear = _linear_layers(model)
    targets = FAMILY_TARGETS.get(family) if config.targets is None else config.targets
    if targets is None:
        raise ModelError(
            f"there are no default LoRA targets for model family {family!r}; set `lora.targets` to "
            f"some of its linear layers: {', '.join(linear)}"
        )
    unknown = [target for target in targets if target not in linear]
    if unknown:
        raise ModelError(
            f"LoRA target {unknown[0]!r} is no linear layer of a block of this {family} model; "
            f"accepted in `lora.targets`: {', '.join(linear)}"
        )
    return targets


def _linear_layers(model: Any) -> list[str]:
    """Last part of the names of the model's linear layers, its head left out, sorted."""
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module is not head
        }
    )
