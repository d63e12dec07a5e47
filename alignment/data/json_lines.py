"""JSON lines, plain or gzipped, read so that each problem has a line number."""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.errors import DataError

_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a file, counted from 1: its JSON object, or the problem that it has."""

    number: int
    text: str
    value: dict[str, Any] | None = None
    problem: str = ""


def read_json_lines(path: Path) -> tuple[Line, ...]:
    """Every line up to the last that is not blank; a bad one is returned with its problem.

    Raises:
        DataError: the file is missing, empty, a damaged gzip, or ends within a line: then
            more than that line may be lost. Names the file and the line reached.
    """
    lines = [_parse(number, raw) for number, raw in _raw_lines(path)]
    while lines and not lines[-1].text.strip():
        lines.pop()
    if not lines:
        raise DataError(f"{path} is empty; it should hold one JSON object a line")
    last = lines[-1]
    if last.problem and not last.text.endswith("\n"):
        raise DataError(
            f"{path}, line {last.number}: the file ends within a line ({last.problem}), so it is "
            "half-written; copy it again, or delete that line to do without the rest"
        )
    return tuple(lines)


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    if not path.is_file():
        raise DataError(f"{path} does not exist or is not a file; name a .jsonl or .jsonl.gz file")
    with path.open("rb") as plain:
        is_gzip = plain.read(2) == _GZIP_MAGIC
        plain.seek(0)
        number = 0
        try:
            for number, raw in enumerate(
                gzip.GzipFile(fileobj=plain) if is_gzip else plain, start=1
            ):
                yield number, raw
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(
                f"{path}, after line {number}: {'damaged gzip' if is_gzip else 'unreadable'} "
                f"({error}); copy the file again"
            ) from None


def _parse(number: int, raw: bytes) -> Line:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Line(
            number=number,
            text=raw.decode("utf-8", errors="replace"),
            problem=f"not UTF-8 at byte {error.start + 1} of the line",
        )
    if not text.strip():
        return Line(number=number, text=text, problem="the line is empty")
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        return Line(number=number, text=text, problem=f"not JSON: {error}")
    if not isinstance(value, dict):
        return Line(
            number=number, text=text, problem=f"not a JSON object but {type(value).__name__}"
        )
    return Line(number=number, text=text, value=value)
