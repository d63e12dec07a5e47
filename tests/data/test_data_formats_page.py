"""docs/data_formats.md: the example runs, and the tables say what the code does."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from alignment import records
from alignment.data import importing
from alignment.data.imported import Refusal
from alignment.data.starter import load_starter

PAGE = (Path(__file__).parents[2] / "docs" / "data_formats.md").read_text(encoding="utf-8")
RECORDS = [
    records.Prompt,
    records.Message,
    records.Demonstration,
    records.Response,
    records.CandidateSet,
    records.Ranking,
    records.Comparison,
    records.PreferenceGroup,
]


def test_the_example_runs_and_prints_what_the_page_says(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    (printed,) = re.findall(r"```text\n(.*?)```", PAGE, flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == printed
    assert (tmp_path / "prepared" / "preference_groups.parquet").is_file()


def described(kind):
    hints = get_type_hints(kind)
    columns = []
    for field in dataclasses.fields(kind):
        text = f"`{field.name}` {name_of(hints[field.name])}"
        if field.default is not dataclasses.MISSING:
            value = f'"{field.default}"' if isinstance(field.default, str) else field.default
            text += f" = {value}"
        elif field.default_factory is not dataclasses.MISSING:
            text += f" = {field.default_factory()}"
        columns.append(text)
    return ", ".join(columns)


def name_of(annotation):
    if get_origin(annotation) is Literal:
        *others, last = (f"`{value}`" for value in get_args(annotation))
        return f"string ({', '.join(others)} or {last})"
    if get_origin(annotation) is tuple:
        return f"list of {name_of(get_args(annotation)[0])}"
    if dataclasses.is_dataclass(annotation):
        return f"`{annotation.__name__}`"
    return {str: "string", int: "int64", float: "double"}[annotation]


@pytest.mark.parametrize("kind", RECORDS)
def test_the_column_table_is_that_of_the_record_classes(kind):
    assert f"| `{kind.__name__}` | {described(kind)} |\n" in PAGE


def test_the_starter_table_counts_what_is_shipped():
    starter = load_starter()
    parts = {
        "demonstrations": [d.prompt for d in starter.demonstrations],
        "training prompts": starter.train_prompts,
        "held-out prompts": starter.heldout_prompts,
    }
    for name, prompts in parts.items():
        english = sum(p.language == "en" for p in prompts)
        assert f"| {name} | {english} | {len(prompts) - english} |" in PAGE


def test_file_names_and_refusal_fields_are_named():
    for name, value in vars(importing).items():
        if name.endswith("_FILE"):
            assert f"| `{value}` |" in PAGE
    for field in dataclasses.fields(Refusal):
        assert f"`{field.name}`" in PAGE
    for kind in get_args(get_type_hints(Refusal)["kind"]):
        assert f"`{kind}`" in PAGE
