"""Digests of the code behind each stage, so that no change of results goes unnoticed.

A stage's results are reused as long as its `VERSION` stays. When code that a stage uses changes,
either raise that VERSION (the change alters results) or acknowledge the change as neutral:

    python tests/flows/stage_digests.py
"""

import ast
import hashlib
import json
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).with_suffix(".json")
STAGES = sorted(
    p for p in (ROOT / "flows" / "stages").glob("*.py") if "STAGE, VERSION" in p.read_text()
)


def stage_record(path: Path) -> dict[str, object]:
    """Version and code digest of one stage, `{"version": 1, "digest": "..."}`."""
    digest = hashlib.sha256()
    for module in sorted(used_modules(path)):
        digest.update(f"{module.relative_to(ROOT)}\n{code_of(module)}\n".encode())
    return {"version": version_of(path), "digest": digest.hexdigest()}


def version_of(path: Path) -> int:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "(STAGE, VERSION)":
            return int(ast.literal_eval(node.value)[1])
    raise AssertionError(f"{path} has no STAGE, VERSION = name, number")


@cache
def code_of(path: Path) -> str:
    """The module's code without comments, docstrings and layout, none of which computes."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [n for n in node.body if not _is_text(n)] or [ast.Pass()]
    return ast.dump(tree)


def used_modules(path: Path) -> set[Path]:
    """The stage's file and every module of `alignment` it reaches, lazy imports and actors too."""
    seen, todo = {path}, [path]
    if "engines.roles" in path.read_text():
        todo.append(ROOT / "alignment" / "cluster" / "session.py")
    while todo:
        for module in imported_modules(todo.pop()):
            if module not in seen:
                seen.add(module)
                todo.append(module)
    return seen


@cache
def imported_modules(path: Path) -> tuple[Path, ...]:
    found: list[Path] = []
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.startswith("alignment."):
                base = ROOT / name.replace(".", "/")
                found += (f for f in (base.with_suffix(".py"), base / "__init__.py") if f.exists())
    return tuple(found)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


if __name__ == "__main__":
    records = {path.stem: stage_record(path) for path in STAGES}
    RECORD.write_text(json.dumps(records, indent=1) + "\n")
