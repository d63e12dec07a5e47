"""How the database answers statements: by searching an index, or by reading a whole table."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, event

from labeling_ui.store import LabelStore

Statements = dict[str, Any]
"""Parameters by statement."""


@contextmanager
def recorded(store: LabelStore) -> Iterator[Statements]:
    """Every reading or writing statement of the block, once each, with its first parameters."""
    seen: Statements = {}

    def note(
        connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        if statement.lstrip().upper().startswith(("SELECT", "UPDATE", "DELETE", "INSERT")):
            seen.setdefault(statement, parameters)

    engine = store._engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


def whole_reads(store: LabelStore, statements: Statements, *, forced: bool) -> list[str]:
    """Steps that read a whole table or index, each with its statement.

    `forced` keeps PostgreSQL from reading a whole table where that is cheaper because it is small.
    """
    found = []
    with store.read() as connection:
        postgresql = connection.dialect.name == "postgresql"
        if postgresql and forced:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        steps = postgresql_whole_reads if postgresql else sqlite_whole_reads
        for statement, parameters in statements.items():
            found += [f"{s}: {statement}" for s in steps(connection, statement, parameters)]
    return found


def sqlite_whole_reads(connection: Connection, statement: str, parameters: Any) -> list[str]:
    """Steps of SQLite's plan that are no search."""
    plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
    return [str(row[3]) for row in plan if is_whole_read(str(row[3]))]


def is_whole_read(step: str) -> bool:
    """True for a step such as `SCAN task`; subqueries that were searched for may be scanned."""
    return re.match(r"SCAN (?!\(subquery|anon_\d|CONSTANT)", step) is not None


def postgresql_whole_reads(connection: Connection, statement: str, parameters: Any) -> list[str]:
    """Nodes of PostgreSQL's plan that are no search."""
    plan = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar_one()
    plan = json.loads(plan) if isinstance(plan, str) else plan
    return list(unsearched(plan[0]["Plan"]))


def unsearched(node: Mapping[str, Any]) -> Iterator[str]:
    """The table reads of a node and those below it, as far as no index condition bounds them."""
    kind = node["Node Type"]
    if kind == "Seq Scan" or ("Index" in kind and "Index Cond" not in node):
        yield f"{kind} of {node.get('Relation Name', node.get('Index Name'))}"
    for below in node.get("Plans", ()):
        yield from unsearched(below)
