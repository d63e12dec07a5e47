"""Settings as TOML text that `load_config` reads again."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel


def toml_text(settings: BaseModel) -> str:
    """A model of tables and plain values as TOML; absent settings (None) are left out."""
    return "\n".join(_table("", settings.model_dump(mode="json"))).strip() + "\n"


def _table(path: str, values: Mapping[str, Any]) -> Iterator[str]:
    plain = {name: value for name, value in values.items() if not isinstance(value, Mapping)}
    if path and plain:
        yield f"\n[{path}]"
    for name, value in plain.items():
        if value is not None:
            yield f"{name} = {_value(value)}"
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _table(f"{path}.{name}" if path else name, value)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    # JSON's strings, numbers and booleans are TOML's, but for control characters in strings
    return json.dumps(value, ensure_ascii=False)
