"""Our records as Parquet files, written whole or not at all.

The columns are derived from the record classes, so there is no second schema to keep in step:
a nested record is a struct, a tuple a list. A file is written under a temporary name in its own
folder and renamed when complete; equal records give equal bytes.
"""

import os
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from alignment.data.validation import check_ids_differ, check_record
from alignment.errors import DataError
from alignment.records import (
    CandidateSet,
    Comparison,
    Demonstration,
    Message,
    PreferenceGroup,
    Prompt,
    Ranking,
    Response,
)

SCHEMA_VERSION = 1
"""Raised whenever a record class gains, loses or changes a field."""

RecordT = TypeVar("RecordT", Demonstration, Prompt, CandidateSet, Ranking, PreferenceGroup)

_ROWS_PER_GROUP = 4096
_RECORDS: tuple[Any, ...] = (
    *(Message, Prompt, Demonstration, Response),
    *(CandidateSet, Ranking, Comparison, PreferenceGroup),
)
_FIELD_TYPES: dict[Any, dict[str, Any]] = {kind: get_type_hints(kind) for kind in _RECORDS}
_REQUIRED: dict[Any, tuple[str, ...]] = {
    kind: tuple(
        f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING
    )
    for kind in _RECORDS
}


def write_records(path: Path, records: Sequence[RecordT], kind: type[RecordT]) -> None:
    """Write the records, in the order given, as one Parquet file that replaces any before it.

    Raises:
        DataError: there are no records, or one of them is unusable; nothing is written then.
    """
    if not records:
        raise DataError(f"{path}: no {kind.__name__} records to write; at least one is needed")
    for row, record in enumerate(records):
        if type(record) is not kind:
            raise TypeError(f"row {row} is {type(record).__name__}, not {kind.__name__}")
        check_record(record, f"{path}, row {row}")
    check_ids_differ(records, str(path))
    table = pa.Table.from_pylist([_to_plain(r) for r in records], schema=arrow_schema(kind))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            _write_table(table, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_records(path: Path, kind: type[RecordT]) -> tuple[RecordT, ...]:
    """The records of a Parquet file in file order; columns that are not ours are ignored.

    Fields that have a default may be missing or null. Integer and string widths may differ.

    Raises:
        DataError: the file is missing, empty, damaged, of another schema version or record, or
            a record cannot be used; names file, row and field.
    """
    table = _read_table(path)
    _check_metadata(table.schema.metadata or {}, path, kind)
    for name in _REQUIRED[kind]:
        if name not in table.column_names:
            raise DataError(
                f"{path}: column {name!r} is missing; {kind.__name__} needs "
                f"{', '.join(_REQUIRED[kind])}, the file has {', '.join(table.column_names)}"
            )
    ours = [name for name in table.column_names if name in _FIELD_TYPES[kind]]
    records: list[RecordT] = []
    for row, plain in enumerate(table.select(ours).to_pylist()):
        where = f"{path}, row {row}"
        record: RecordT = _from_plain(kind, plain, where, "")
        check_record(record, where)
        records.append(record)
    if not records:
        raise DataError(f"{path}: the table has no rows; at least one {kind.__name__} is needed")
    check_ids_differ(records, str(path))
    return tuple(records)


def arrow_schema(kind: type[Any]) -> pa.Schema:
    """Columns of a record class, with its name and the schema version as metadata."""
    metadata = {"alignflow.record": kind.__name__, "alignflow.schema_version": str(SCHEMA_VERSION)}
    columns = [pa.field(n, _arrow_type(t), nullable=False) for n, t in _FIELD_TYPES[kind].items()]
    return pa.schema(columns, metadata=metadata)


def _write_table(table: pa.Table, file: Any) -> None:
    # Every option that shapes the bytes is fixed here and not left to the library's defaults.
    pq.write_table(
        table,
        file,
        version="2.6",
        data_page_version="1.0",
        compression="zstd",
        compression_level=3,
        use_dictionary=True,
        write_statistics=True,
        row_group_size=_ROWS_PER_GROUP,
    )


def _read_table(path: Path) -> pa.Table:
    if not path.is_file():
        raise DataError(f"{path} does not exist or is not a file; name a Parquet file")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes): it was never written; make it again")
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}): it is half-written, "
            "damaged or of another format; make or copy it again"
        ) from None


def _check_metadata(metadata: dict[bytes, bytes], path: Path, kind: type[Any]) -> None:
    # Files made by other programs carry no metadata of ours: their columns decide.
    record = metadata.get(b"alignflow.record", kind.__name__.encode()).decode()
    version = metadata.get(b"alignflow.schema_version", str(SCHEMA_VERSION).encode()).decode()
    if record != kind.__name__:
        raise DataError(f"{path} holds {record} records; {kind.__name__} records are needed here")
    if version != str(SCHEMA_VERSION):
        raise DataError(
            f"{path} has schema version {version}; this alignflow reads {SCHEMA_VERSION}: make the "
            "file again or use the alignflow that wrote it"
        )


def _arrow_type(annotation: Any) -> pa.DataType:
    if is_dataclass(annotation):
        columns = _FIELD_TYPES[annotation]
        return pa.struct([pa.field(n, _arrow_type(t), nullable=False) for n, t in columns.items()])
    if get_origin(annotation) is tuple:
        return pa.list_(pa.field("item", _arrow_type(get_args(annotation)[0]), nullable=False))
    if get_origin(annotation) is Literal:
        return pa.string()
    return {str: pa.string(), int: pa.int64(), float: pa.float64()}[annotation]


def _to_plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_to_plain(item) for item in value]
    return value


def _from_plain(annotation: Any, value: Any, where: str, path: str) -> Any:
    if is_dataclass(annotation):
        return _record_from_plain(annotation, value, where, path)
    if get_origin(annotation) is tuple:
        _expect(isinstance(value, list), where, path, value, "a list")
        item = get_args(annotation)[0]
        return tuple(_from_plain(item, v, where, f"{path}[{i}]") for i, v in enumerate(value))
    if get_origin(annotation) is Literal:
        accepted = get_args(annotation)
        _expect(value in accepted, where, path, value, " or ".join(map(repr, accepted)))
        return value
    if annotation is float and type(value) is int:
        return float(value)
    _expect(type(value) is annotation, where, path, value, f"a value of type {annotation.__name__}")
    return value


def _record_from_plain(kind: Any, value: Any, where: str, path: str) -> Any:
    _expect(isinstance(value, dict), where, path, value, f"a struct with {kind.__name__}'s fields")
    prefix = f"{path}." if path else ""
    known = {}
    for name, annotation in _FIELD_TYPES[kind].items():
        if value.get(name) is not None:
            known[name] = _from_plain(annotation, value[name], where, f"{prefix}{name}")
        else:
            optional = name not in _REQUIRED[kind]
            _expect(optional, where, f"{prefix}{name}", None, "a value: the field is required")
    return kind(**known)


def _expect(holds: bool, where: str, path: str, value: Any, accepted: str) -> None:
    if not holds:
        seen = "nothing" if value is None else repr(value)[:80]
        raise DataError(f"{where}, field {path}: found {seen}; accepted: {accepted}")
