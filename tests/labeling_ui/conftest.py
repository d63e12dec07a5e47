from pathlib import Path

import pytest
from rounds_for_tests import Clock, make_candidates

from labeling_ui.store import LabelStore


@pytest.fixture
def candidates():
    return make_candidates()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    return tmp_path / "labels.sqlite"


@pytest.fixture
def store(store_path, clock):
    with LabelStore.open(store_path, clock=clock) as opened:
        yield opened
