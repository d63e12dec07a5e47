"""Fixtures that several packages share."""

from pathlib import Path

import pytest
import torch

from alignment.models.tiny import make_tiny_model

torch.set_num_threads(1)  # the models are tiny: more threads only cost switches


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random language model with tied embeddings."""
    folder = tmp_path_factory.mktemp("tiny-model")
    make_tiny_model(folder, seed=0)
    return folder
