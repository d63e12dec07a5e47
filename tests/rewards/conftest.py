"""Fixtures for tests of the rewards."""

from pathlib import Path
from typing import Any

import pytest
from reward_texts import prompt

from alignment.data.chat import encode_prompt
from alignment.experience import EncodedPrompt
from alignment.models.loading import load_tokenizer
from alignment.records import Prompt


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model)


@pytest.fixture
def encoded_prompts(tokenizer: Any) -> list[tuple[EncodedPrompt, Prompt]]:
    prompts = [prompt("Why is the sky blue?", name="sky"), prompt("Count to 3.", name="count")]
    return [(encode_prompt(tokenizer, p, max_prompt_tokens=200), p) for p in prompts]
