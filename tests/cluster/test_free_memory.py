"""When roles give memory back: as little of the machine's, or the container's, is left."""

from pathlib import Path

import pytest

from alignment.cluster.processes import MEMORY_FILES, free_share

GIB = 2**30


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       1000 kB\nMemFree: 10 kB\nMemAvailable:   400 kB\n")
    return path


def limited(folder: Path, *, limit: str, used: int, cached: int) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\nslab 2\n")
    return folder


def test_without_a_limit_the_machine_counts(meminfo: Path, tmp_path: Path) -> None:
    assert free_share((meminfo, tmp_path / "absent")) == pytest.approx(0.4)
    assert free_share((meminfo, limited(tmp_path, limit="max", used=GIB, cached=0))) == 0.4


def test_a_container_may_have_less(meminfo: Path, tmp_path: Path) -> None:
    group = limited(tmp_path, limit=str(4 * GIB), used=4 * GIB, cached=GIB)
    assert free_share((meminfo, group)) == pytest.approx(0.25)


def test_where_nothing_is_known_memory_is_given_back(tmp_path: Path) -> None:
    assert free_share((tmp_path / "absent", tmp_path)) == 0.0


def test_this_machine_can_be_read() -> None:
    assert 0.0 < free_share(MEMORY_FILES) < 1.0
