"""One Ray for all tests of this folder, with 8 GPUs that it only believes in.

It closes after the folder's last test, not at the end of the session: a process can use one Ray
at a time, and tests of other folders start their own.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import role_factory
from ray import cloudpickle
from role_factory import make_cluster_config, trainable_spec

from alignment.cluster.roles import RemoteGenerator
from alignment.cluster.runtime import ray_runtime
from alignment.cluster.session import Cluster
from alignment.role_specs import FrozenSpec, GeneratorSpec
from alignment.training.roles import PPORoles

# Actors cannot import test modules, so what they get from there travels as code.
cloudpickle.register_pickle_by_value(role_factory)

opened = ExitStack()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> Iterator[None]:
    yield
    if nextitem is None or Path(__file__).parent not in nextitem.path.parents:
        opened.close()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    config = make_cluster_config()
    logs = opened.enter_context(
        ray_runtime(config, log_folder=tmp_path_factory.mktemp("logs"), num_gpus=8)
    )
    return Cluster(config, logs=logs)


@pytest.fixture(scope="session")
def ppo_roles(cluster: Cluster, tiny_model: Path) -> PPORoles:
    """The five roles of PPO on their engines, started once; tests must not depend on order."""
    roles = cluster.start_roles(
        [
            trainable_spec("policy", tiny_model),
            trainable_spec("critic", tiny_model, kind="value"),
            FrozenSpec(name="reference", kind="language", model_folder=tiny_model),
            FrozenSpec(name="reward_model", kind="value", model_folder=tiny_model),
            GeneratorSpec(name="generator", model_folder=tiny_model, max_sequence_tokens=512),
        ]
    )
    opened.callback(cluster.stop_roles, list(roles))
    return PPORoles(**roles)


@pytest.fixture
def copying(ppo_roles: PPORoles) -> RemoteGenerator:
    """The engines of `ppo_roles`, as if they could not look into the policy's process."""
    assert isinstance(ppo_roles.generator, RemoteGenerator)
    other = RemoteGenerator(ppo_roles.generator.group)
    other._can_read = lambda _: False  # type: ignore[method-assign]
    return other
