"""docs/numerics.md names what exists, and everything that exists."""

import ast
import re
from pathlib import Path

import pytest

from alignment.config import PipelineConfig

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "numerics.md").read_text(encoding="utf-8")
PACKAGES = [ROOT / "alignment" / "objectives", ROOT / "alignment" / "statistics"]


def public_names():
    """`module.name` of every public function, class and constant of the two packages."""
    for path in (p for package in PACKAGES for p in sorted(package.glob("[!_]*.py"))):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            else:
                names = []
            yield from (f"{path.stem}.{name}" for name in names if not name.startswith("_"))


TYPE_ALIASES = {"aggregation.Aggregation", "kl.KLEstimator"}


def test_every_public_name_is_on_the_page():
    on_page = set(re.findall(r"`(\w+\.\w+)`", PAGE))
    assert set(public_names()) - TYPE_ALIASES - on_page == set()


def test_every_name_on_the_page_exists():
    modules = "|".join(p.stem for package in PACKAGES for p in package.glob("[!_]*.py"))
    named = set(re.findall(rf"`((?:{modules})\.(?!py\b)\w+)`", PAGE))
    assert len(named) > 30
    assert named - set(public_names()) == set()


def test_every_test_on_the_page_exists():
    files = [
        path
        for name in ("objectives", "statistics", "training", "models")
        for path in (ROOT / "tests" / name).glob("*.py")
    ]
    functions = {
        node.name
        for path in files
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 30
    assert named - functions == set()
    named_files = set(re.findall(r"`(?:tests/objectives/)?(test_\w+\.py)`", PAGE))
    assert named_files - {path.name for path in files} == set()


@pytest.mark.parametrize("setting", sorted(set(re.findall(r"`(ppo\.\w+)`", PAGE))))
def test_every_setting_on_the_page_exists(setting):
    assert setting.removeprefix("ppo.") in type(PipelineConfig().ppo).model_fields
