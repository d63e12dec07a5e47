"""Machines: Ray's launcher file, GPU names, and this machine."""

import os

import pytest

from alignment.errors import ConfigError
from alignment.planning.cluster_file import read_cluster_file
from alignment.planning.machines import gpu_kind, local_machine

CLUSTER = """\
cluster_name: rlhf
max_workers: 5
provider: {type: aws, region: us-west-2}
head_node_type: head
available_node_types:
  head:
    node_config: {InstanceType: m5.4xlarge}
    resources: {CPU: 16, memory: 64000000000}
  gpus:
    min_workers: 0
    max_workers: 3
    node_config: {InstanceType: p4de.24xlarge}
    resources: {CPU: 96, GPU: 8, memory: 1000000000000, "accelerator_type:A100-80G": 1}
  more:
    resources: {CPU: 48, GPU: 4}
"""


@pytest.fixture
def write(tmp_path):
    def written(text):
        path = tmp_path / "cluster.yaml"
        path.write_text(text)
        return path

    return written


def test_head_and_workers_up_to_the_limits(write):
    """3 of `gpus`; `more` sets no limit of its own and gets what the global 5 leave."""
    found = read_cluster_file(write(CLUSTER), gpu="H100")
    assert [(n.name, n.cpus, n.gpus) for n in found.nodes] == [
        ("head 1", 16, 0),
        ("gpus 2", 96, 8),
        ("gpus 3", 96, 8),
        ("gpus 4", 96, 8),
        ("more 5", 48, 4),
        ("more 6", 48, 4),
    ]
    assert [n.memory for n in found.nodes] == [64_000_000_000, *[10**12] * 3, None, None]
    assert [n.gpu.name for n in found.nodes if n.gpu] == ["A100-80G"] * 3 + ["H100"] * 2
    assert found.gpus == 32
    assert found.gpu == gpu_kind("H100")  # 79.6 GiB, the least


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("CPU: 48,", "", r"more.resources`.CPU is None; write the number of cores"),
        ("GPU: 4", "GPU: four", r"more.resources`.GPU is 'four'; expected a whole number"),
        ("GPU: 4", "GPU: 4", r"more.resources` has GPUs of an unknown kind; .* --gpu A100-80G"),
        ("A100-80G", "TPU-V5", r"GPU 'TPU-V5' is not known; accepted: T4, "),
        ("head_node_type: head", "head_node_type: boss", r"`head_node_type` is 'boss'"),
        ("available_node_types:", "node_types:", r"`available_node_types` is None"),
        ("CPU: 16,", "CPU: [16", r"is not valid YAML: .* line 8"),
    ],
)
def test_what_a_plan_cannot_use_is_named(write, before, after, told):
    with pytest.raises(ConfigError, match=told):
        read_cluster_file(write(CLUSTER.replace(before, after)))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none.yaml does not exist"):
        read_cluster_file(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("name", "entry"), [("A100", "A100-40G"), ("h200", "H200"), ("RTX-4090", "RTX4090")]
)
def test_gpu_names_are_read_as_people_write_them(name, entry):
    assert gpu_kind(name).name == entry


def test_this_machine():
    (node,) = local_machine().nodes
    assert node.cpus == os.cpu_count()
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert node.memory == pytest.approx(physical, rel=0.05) or node.memory < physical
