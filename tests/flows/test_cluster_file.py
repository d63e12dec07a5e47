"""The shipped cluster.yaml and Dockerfile, held to what reads them."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from alignment.planning.cluster_file import read_cluster_file

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def schema():
    import ray

    return json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())


def test_cluster_file_keeps_rays_own_schema(schema):
    settings = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    jsonschema.validate(settings, schema)
    with pytest.raises(jsonschema.ValidationError, match="max_wrokers"):
        jsonschema.validate(settings | {"max_wrokers": 1}, schema)


def test_cluster_file_can_be_planned_for():
    machines = read_cluster_file(ROOT / "cluster.yaml")
    head, *workers = machines.nodes
    assert head.gpus == 0
    assert [node.gpus for node in workers] == [8] * 4
    assert machines.gpu.name == "A100-40G"


def test_every_value_of_the_cluster_file_is_explained():
    """A comment above the value's block, or beside it; blocks are separated by empty lines."""
    text = (ROOT / "cluster.yaml").read_text()
    for block in text.split("\n\n"):
        first = block.splitlines()[0].strip()
        assert first.startswith("#") or "#" in block or first == "head_node_type: head", block


def test_image_holds_what_the_makefile_installs():
    dockerfile, makefile = (ROOT / "Dockerfile").read_text(), (ROOT / "Makefile").read_text()
    assert re.findall(r"uv==[\d.]+", dockerfile) == re.findall(r"uv==[\d.]+", makefile)[:1]
    for name in re.findall(r"^COPY (\S+) ", dockerfile, re.M):
        assert (ROOT / name).exists()
