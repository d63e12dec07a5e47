"""Where a base model comes from, and what is refused."""

from pathlib import Path

import pytest

from alignment.config import ModelConfig
from alignment.errors import ModelError
from alignment.models.base_model import prepare_base_model
from alignment.models.loading import load_language_model, load_tokenizer


def test_folder_is_copied_whole(tiny_model: Path, tmp_path: Path) -> None:
    facts = prepare_base_model(ModelConfig(source=str(tiny_model)), tmp_path / "m", seed=0)
    assert facts["origin"] == f"folder {tiny_model.name}"
    load_language_model(tmp_path / "m")


def test_own_template_is_asked_for_when_there_is_none(tiny_model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in tiny_model.iterdir():
        (bare / file.name).write_bytes(file.read_bytes())
    tokenizer = load_tokenizer(bare)
    tokenizer.chat_template = None
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(bare)
    config = ModelConfig(source=str(bare), chat_template="model")
    with pytest.raises(ModelError, match=r"no chat template; set `model\.chat_template`"):
        prepare_base_model(config, tmp_path / "m", seed=0)


def test_unknown_source_names_what_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither `smollm2-135m-instruct`, `tiny`"):
        prepare_base_model(ModelConfig(source="smollm3"), tmp_path / "m", seed=0)


def test_template_keeps_roles_apart_and_adds_no_system_message(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
