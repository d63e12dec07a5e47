"""Accounts, guidelines, grades, revisions, gold, counters and the audit log.

Revision ID: 0002
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds columns and tables, and fills the counters from the labels there are."""
    _add_columns()
    _create_people()
    _create_counters()
    op.create_table(
        "gold",
        sa.Column("task_id", sa.String, sa.ForeignKey("task.id"), primary_key=True),
        sa.Column("pairs", sa.JSON, nullable=False),
    )
    op.create_table(
        "adjudication",
        sa.Column("task_id", sa.String, sa.ForeignKey("task.id"), primary_key=True),
        sa.Column("labeler_id", sa.Integer, sa.ForeignKey("labeler.id"), nullable=False),
        sa.Column("tiers", sa.JSON, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("action", sa.String, nullable=False),
        sa.Column("object", sa.String, nullable=False),
        sa.Column("detail", sa.JSON),
    )
    _carry_over()
    _create_indexes()


def _words(name: str, default: str = "") -> sa.Column[str]:
    return sa.Column(name, sa.String, nullable=False, server_default=default)


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False, server_default="0")


def _truth(name: str, default: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean, nullable=False, server_default=default)


def _add_columns() -> None:
    added: dict[str, list[sa.Column[Any]]] = {
        "round": [
            _words("state", "open"),
            sa.Column("settings", sa.JSON),
            _words("policy_version"),
        ],
        "task": [
            _words("kind", "main"),
            _truth("released", "0"),
            sa.Column("repeat_of", sa.String),
            sa.Column("for_labeler_id", sa.Integer),
            sa.Column("selection_method", sa.String),
            sa.Column("selection_prob", sa.Float),
        ],
        "response": [_words("leak")],
        "labeler": [
            _words("role", "labeler"),
            sa.Column("password_hash", sa.String),
            _truth("active", "1"),
            _number("epoch"),
        ],
        "assignment": [
            sa.Column("round_id", sa.String),
            sa.Column("finished_ms", sa.BigInteger),
            sa.Column("current_annotation", sa.String),
        ],
        "annotation": [
            sa.Column("gaps", sa.JSON),
            sa.Column("bar", sa.Integer),
            sa.Column("flags", sa.JSON),
            sa.Column("criteria", sa.JSON),
            sa.Column("rationale", sa.Text, nullable=False, server_default=""),
            sa.Column("wall_seconds", sa.Float),
            sa.Column("moves", sa.Integer),
            sa.Column("guideline_version", sa.Integer),
        ],
    }
    for table, columns in added.items():
        for column in columns:
            op.add_column(table, column)


def _create_people() -> None:
    op.create_table(
        "invitation",
        sa.Column("key_sha256", sa.String, primary_key=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("expires_ms", sa.BigInteger, nullable=False),
        sa.Column("used_ms", sa.BigInteger),
    )
    op.create_table(
        "guideline",
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("text_en", sa.Text, nullable=False),
        sa.Column("text_zh", sa.Text, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "acceptance",
        sa.Column("labeler_id", sa.Integer, sa.ForeignKey("labeler.id"), primary_key=True),
        sa.Column("version", sa.Integer, sa.ForeignKey("guideline.version"), primary_key=True),
        sa.Column("accepted_ms", sa.BigInteger, nullable=False),
    )


def _create_counters() -> None:
    op.create_table(
        "round_count",
        sa.Column("round_id", sa.String, sa.ForeignKey("round.id"), primary_key=True),
        *(_number(name) for name in ("tasks", "left_out", "wanted", "done")),
    )
    op.create_table(
        "participation",
        sa.Column("round_id", sa.String, sa.ForeignKey("round.id"), primary_key=True),
        sa.Column("labeler_id", sa.Integer, sa.ForeignKey("labeler.id"), primary_key=True),
        *(_number(name) for name in ("cursor", "claims", "done", "surplus", "skipped")),
    )


def _carry_over() -> None:
    op.execute("UPDATE task SET released = (CASE WHEN skips > 0 THEN true ELSE false END)")
    op.execute(
        "UPDATE assignment SET "
        "round_id = (SELECT task.round_id FROM task WHERE task.id = assignment.task_id), "
        "current_annotation = (SELECT a.id FROM annotation a "
        "WHERE a.assignment_id = assignment.id ORDER BY a.revision DESC LIMIT 1), "
        "finished_ms = (SELECT max(a.created_ms) FROM annotation a "
        "WHERE a.assignment_id = assignment.id)"
    )
    op.execute(
        "INSERT INTO round_count (round_id, tasks, left_out, wanted, done) "
        "SELECT round_id, count(*), sum(CASE WHEN state = 'left_out' THEN 1 ELSE 0 END), "
        "sum(CASE WHEN state = 'left_out' THEN done ELSE wanted END), sum(done) "
        "FROM task GROUP BY round_id"
    )
    op.execute(
        "INSERT INTO participation (round_id, labeler_id, claims, done, surplus, skipped) "
        "SELECT round_id, labeler_id, count(*), "
        "sum(CASE WHEN state = 'done' THEN 1 ELSE 0 END), "
        "sum(CASE WHEN state = 'surplus' THEN 1 ELSE 0 END), "
        "sum(CASE WHEN state = 'skipped' THEN 1 ELSE 0 END) "
        "FROM assignment GROUP BY round_id, labeler_id"
    )
    op.execute("DELETE FROM setting WHERE key = 'schema_version'")


def _create_indexes() -> None:
    op.create_index("task_next", "task", ["round_id", "kind", "state", "position"])
    op.create_index("task_released", "task", ["round_id", "kind", "state", "released", "position"])
    op.create_index("assignment_leases", "assignment", ["round_id", "state", "expires_ms"])
    op.create_index("assignment_held", "assignment", ["labeler_id", "round_id", "state"])
    op.create_index("assignment_history", "assignment", ["labeler_id", "finished_ms"])
