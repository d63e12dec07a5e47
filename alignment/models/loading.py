"""Model folders: open them, and name what is wrong with one that cannot be opened."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from alignment.config import LoRAConfig
from alignment.errors import ModelError
from alignment.models.lean_layers import keep_less
from alignment.models.lora import add_adapters
from alignment.models.modules import (
    VALUE_HEAD_WEIGHTS,
    LanguageModel,
    ValueModel,
    mean_head,
    new_value_head,
    read_value_head,
)
from alignment.models.packing import pack_attention
from alignment.models.rotary import rotate_in_fewer_passes
from alignment.role_specs import FrozenSpec, TrainableSpec


def load_language_model(
    folder: Path,
    *,
    temperature: float = 1.0,
    gradient_checkpointing: bool = False,
    entropy_gradient: bool = False,
    lora: LoRAConfig | None = None,
    seed: int = 0,
) -> LanguageModel:
    """The causal language model in `folder`, float32, dropout off; `seed` draws its adapters.

    Raises:
        ModelError: the folder is missing, incomplete or damaged.
    """
    from transformers import AutoModelForCausalLM

    causal_lm = _from_folder(AutoModelForCausalLM, folder)
    if gradient_checkpointing:
        _checkpoint_activations(causal_lm)
    return LanguageModel(
        causal_lm,
        temperature=temperature,
        entropy_gradient=entropy_gradient,
        adapters=add_adapters(causal_lm, lora, seed=seed),
    )


def load_value_model(
    folder: Path,
    *,
    layers: int | None = None,
    seed: int = 0,
    gradient_checkpointing: bool = False,
    lora: LoRAConfig | None = None,
    heads: int = 1,
    keeps_heads: bool = False,
) -> ValueModel:
    """A value model: a saved one, or a language model's backbone with a new head.

    Args:
        folder: a folder written by `ValueModel.save`, or of a causal language model.
        layers: keep only the first this many transformer layers; all if None.
        seed: draws the new head of a language model's backbone, and adapters.
        gradient_checkpointing: recompute activations in the backward pass.
        lora: train adapters of the backbone, and the whole head.
        heads: how many heads a new model gets.
        keeps_heads: answer with a saved ensemble's heads as they are; else with their mean.

    Raises:
        ModelError: the folder is unusable, or has fewer layers than asked for.
    """
    from transformers import AutoModel

    backbone = _from_folder(AutoModel, folder)
    if layers is not None:
        _keep_first_layers(backbone, layers, folder)
    if gradient_checkpointing:
        _checkpoint_activations(backbone)
    hidden_size = int(backbone.config.hidden_size)
    if (folder / VALUE_HEAD_WEIGHTS).exists():
        head, mean, scale = read_value_head(folder)
        if head.out_features > 1 and not keeps_heads:
            head, mean, scale = mean_head(head, mean, scale), 0.0, 1.0
    else:
        head, mean, scale = new_value_head(hidden_size, seed=seed, heads=heads), 0.0, 1.0
    adapters = add_adapters(backbone, lora, seed=seed)
    return ValueModel(backbone, head, mean=mean, scale=scale, adapters=adapters)


def load_trainable_module(spec: TrainableSpec) -> LanguageModel | ValueModel:
    """The module a trainable spec asks for."""
    load: dict[str, Callable[[], LanguageModel | ValueModel]] = {
        "language": lambda: load_language_model(
            spec.model_folder,
            temperature=spec.temperature,
            gradient_checkpointing=spec.training.gradient_checkpointing,
            entropy_gradient=spec.entropy_gradient,
            lora=spec.training.lora,
            seed=spec.seed,
        ),
        "value": lambda: load_value_model(
            spec.model_folder,
            layers=spec.layers,
            seed=spec.seed,
            gradient_checkpointing=spec.training.gradient_checkpointing,
            lora=spec.training.lora,
            heads=spec.heads,
            keeps_heads=spec.heads > 1,
        ),
    }
    return load[spec.kind]()


def load_frozen_module(spec: FrozenSpec) -> LanguageModel | ValueModel:
    """The module a frozen spec asks for."""
    if spec.kind == "language":
        return load_language_model(spec.model_folder, temperature=spec.temperature)
    return load_value_model(spec.model_folder, keeps_heads=spec.keeps_heads)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a model folder.

    Raises:
        ModelError: there is none, or it is damaged.
    """
    from transformers import AutoTokenizer

    _require_folder(folder)
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # every tokenizer has its own exceptions for a damaged file
        raise ModelError(
            f"model folder {folder} has no usable tokenizer: {_first_line(error)}; "
            "it needs tokenizer.json and tokenizer_config.json"
        ) from error


def _from_folder(auto_class: Any, folder: Path) -> Any:
    _require_folder(folder)
    try:
        model, report = auto_class.from_pretrained(
            str(folder),
            dtype=torch.float32,
            local_files_only=True,
            attention_dropout=0.0,
            output_loading_info=True,
        )
    except Exception as error:  # every loader has its own exceptions; all mean the same here
        raise ModelError(
            f"model folder {folder} cannot be loaded: {_first_line(error)}; it needs config.json "
            "and safetensors weights that fit it"
        ) from error
    if missing := sorted(report["missing_keys"]):  # transformers would draw them at random
        raise ModelError(
            f"model folder {folder} lacks {len(missing)} of the weights that its config.json asks "
            f"for, {missing[0]} first; copy the folder again, or correct config.json"
        )
    pack_attention(model)
    keep_less(model)
    rotate_in_fewer_passes(model)
    return model.eval()  # dropout off: a ratio of 1 at the first update is part of the contract


def _require_folder(folder: Path) -> None:
    path = folder / "config.json"
    if not path.is_file():
        what = "has no config.json" if folder.is_dir() else "does not exist"
        raise ModelError(
            f"model folder {folder} {what}; name a folder written by transformers' save_pretrained"
        )
    try:
        settings = json.loads(path.read_bytes())
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}; copy the model folder again") from None
    if not isinstance(settings, dict) or "model_type" not in settings:
        raise ModelError(
            f"{path} has no `model_type`, so it does not describe a model; copy the model folder "
            "again"
        )


def _checkpoint_activations(model: Any) -> None:
    """Recompute activations in the backward pass.

    transformers does so in training mode only, so every dropout is taken out before that mode.
    """
    model.gradient_checkpointing_enable()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train()


def _keep_first_layers(backbone: Any, layers: int, folder: Path) -> None:
    available = len(backbone.layers)
    if layers > available:
        raise ModelError(
            f"`reward_model.layers` is {layers}, but the model in {folder} has {available}; "
            f"use {available} or fewer, or leave it out for all"
        )
    backbone.layers = backbone.layers[:layers]
    backbone.config.num_hidden_layers = layers
    if getattr(backbone.config, "layer_types", None):
        backbone.config.layer_types = backbone.config.layer_types[:layers]


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
