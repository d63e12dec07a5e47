"""The layer rules of the design, held by the code's own imports."""

import ast
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("alignment", "flows", "labeling_ui")
MODULES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "misc", "base"}
LONGEST_FUNCTION = 60
LONGEST_LOOP_FILE = 170
ONLY_IN = {
    "ray": ("alignment/cluster/",),
    "deepspeed": ("alignment/cluster/",),
    "vllm": ("alignment/cluster/",),
    "prefect": ("flows/",),
    "gradio": ("labeling_ui/",),
    "transformers": ("alignment/models/", "alignment/data/", "alignment/cluster/"),
    "peft": ("alignment/models/", "alignment/data/", "alignment/cluster/"),
}
MAY_IMPORT = {
    "alignment": {"alignment"},
    "labeling_ui": {"labeling_ui", "alignment"},
    "flows": {"flows", "alignment", "labeling_ui"},
}
LABELING_MAY_USE = {"config", "records", "errors", "gold_rubric", "statistics", "seeds"}
LABELING_MAY_READ = "alignment.data.tables"


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@dataclass
class Function:
    name: str
    lines: int
    says_what_it_returns: bool


@dataclass
class Code:
    """What the rules ask of a module, read once: its syntax tree is large."""

    docstring: str | None
    imports: list[str]
    top_level_imports: list[str]
    functions: list[Function]


@cache
def code_of(path: Path) -> Code:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    functions = [
        Function(node.name, (node.end_lineno or 0) - node.lineno + 1, node.returns is not None)
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return Code(ast.get_docstring(tree), imports_among(nodes), imports_among(tree.body), functions)


def imports_among(nodes: Sequence[ast.AST]) -> list[str]:
    names: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_keeps_the_layer_rules(path: Path) -> None:
    name = name_of(path)
    package = name.split("/")[0]
    for imported in code_of(path).imports:
        top = imported.split(".")[0]
        if top in PACKAGES:
            assert top in MAY_IMPORT[package], f"{name} imports {imported}"
        allowed = ONLY_IN.get(top)
        assert allowed is None or name.startswith(allowed), f"{name} imports {imported}"
        if package == "labeling_ui" and imported.startswith("alignment."):
            allowed = imported.split(".")[1] in LABELING_MAY_USE
            allowed = allowed or imported.startswith(LABELING_MAY_READ)
            assert allowed, f"{name} imports {imported}"
        if name.startswith("alignment/training/"):
            assert not imported.startswith("alignment.cluster"), f"{name} imports {imported}"


@pytest.mark.parametrize("folder", ["alignment/objectives", "alignment/statistics"])
def test_mathematics_knows_no_configuration(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        for imported in code_of(path).imports:
            assert not imported.startswith(("alignment.config", "alignment.data", "pathlib", "os"))


def test_training_never_sees_the_gold_rubric() -> None:
    for part in ("training", "models", "cluster", "objectives", "data"):
        for path in (ROOT / "alignment" / part).rglob("*.py"):
            assert not any("gold_rubric" in imported for imported in code_of(path).imports), path


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_says_what_it_is_and_stays_readable(path: Path) -> None:
    code = code_of(path)
    assert code.docstring, f"{name_of(path)} has no module docstring"
    assert path.stem not in FORBIDDEN_NAMES
    for function in code.functions:
        where = f"{name_of(path)}: {function.name}"
        assert function.lines <= LONGEST_FUNCTION, f"{where} has {function.lines} lines"
        assert function.says_what_it_returns, f"{where} has no return type"


def test_training_loops_fit_in_the_head() -> None:
    for path in (ROOT / "alignment" / "training").glob("*.py"):
        assert len(path.read_text().splitlines()) <= LONGEST_LOOP_FILE, path


def test_no_import_cycles() -> None:
    modules = {
        name_of(p).removesuffix(".py").removesuffix("/__init__").replace("/", "."): p
        for p in MODULES
    }
    edges = {
        name: {i for i in code_of(path).top_level_imports if i in modules and i != name}
        for name, path in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in sorted(edges[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in sorted(modules):
        visit(name, ())


@pytest.mark.parametrize("module", ["alignment.config", "flows.cli", "alignment.gold_rubric"])
def test_light_modules_stay_light(module: str) -> None:
    heavy = ("torch", "ray", "prefect", "gradio", "vllm", "deepspeed", "transformers")
    code = f"import {module}, sys; print([m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.strip() == "[]"
