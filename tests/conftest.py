"""Fixtures that several packages share, and how tests are shared among processes."""

import gc
import re
from pathlib import Path

import pytest
import torch

from alignment.models.tiny import make_tiny_model

torch.set_num_threads(1)  # the models are tiny: more threads only cost switches
gc.disable()  # while modules are imported and tests collected: all of that stays


_ENGINES_ALONE = re.compile(r"^pytestmark = (needs_a_browser|\[?\s*pytest\.mark\.engines\b)", re.M)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A run without engines does not import modules that hold nothing else.

    Each process would take seconds for Gradio, Prefect and Ray, and then deselect every test.
    """
    asked = config.option.markexpr
    if "not engines" not in asked or " or " in asked or collection_path.suffix != ".py":
        return None
    return _ENGINES_ALONE.search(collection_path.read_text(encoding="utf-8")) is not None or None


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What may not run apart goes into one group, the longest groups first.

    With `--dist loadgroup` a group stays in one process: the tests of `cluster/` share a Ray, other
    tests that start engines share servers and a browser, the label service's others a PostgreSQL,
    and a module shares its fixtures. Long modules that share nothing go to whichever process is
    free first.
    """
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(key=lambda item: _LONGEST_FIRST.get(_group(item), len(_LONGEST_FIRST)))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


_APART = ("test_chaos", "test_hosts_in_namespaces", "test_job_on_hosts", "test_server_kills")
_LONGEST_FIRST = {name: place for place, name in enumerate(("ray", "services", *_APART))}


def _group(item: pytest.Item) -> str:
    if item.get_closest_marker("engines") is None:
        return "labels" if item.path.parent.name == "labeling_ui" else str(item.path)
    if item.path.stem in _APART:
        return item.path.stem
    return "ray" if item.path.parent.name == "cluster" else "services"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random language model with tied embeddings."""
    folder = tmp_path_factory.mktemp("tiny-model")
    make_tiny_model(folder, seed=0)
    return folder
