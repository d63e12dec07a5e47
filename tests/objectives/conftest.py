import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture
def reference_json():
    """Read a file of the test data's reference/ folder; skips where there is no test data."""
    folder = os.environ.get("ALIGNFLOW_TEST_DATA")
    if not folder:
        pytest.skip("ALIGNFLOW_TEST_DATA is not set: reference cases are not available")

    def read(name):
        return json.loads((Path(folder) / "reference" / name).read_text(encoding="utf-8"))

    return read


@pytest.fixture
def golden():
    """Two responses of 4 and 2 tokens with all that PPO knows of them, float64.

    Masked entries hold nan: whatever stands there must not matter.
    """
    nan = float("nan")

    def grid(rows):
        return torch.tensor(rows, dtype=torch.float64)

    return SimpleNamespace(
        policy=grid([[-1, -0.5, -2, -0.1], [-0.7, -1.2, nan, nan]]),
        reference=grid([[-1.1, -0.7, -1.5, -0.2], [-0.9, -1, nan, nan]]),
        new=grid([[-0.8, -0.9, -1.6, -0.1], [-0.7, -1.6, nan, nan]]),
        mask=torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]) == 1,
        scores=grid([1, -0.5]),
        values=grid([[0.2, 0.1, 0.4, 0.3], [0, -0.1, nan, nan]]),
        new_values=grid([[0.9, 0, 0.5, 1.2], [-0.4, -0.2, nan, nan]]),
    )
