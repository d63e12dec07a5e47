"""Rounds, tasks, assignments and append-only rankings: the database of alignflow 0.1.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision: str | None = None


def upgrade() -> None:
    """Creates the tables; on SQLite these are what alignflow 0.1 made without Alembic."""
    op.create_table(
        "setting",
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("value", sa.String, nullable=False),
    )
    op.create_table(
        "round",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("panel", sa.String, nullable=False),
        sa.Column("rankings_per_prompt", sa.Integer, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("frozen_ms", sa.BigInteger),
        sa.Column("frozen_digest", sa.String),
    )
    _create_tasks()
    op.create_table(
        "labeler",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String, nullable=False, unique=True),
        sa.Column("pseudonym", sa.String, nullable=False, unique=True),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
    )
    _create_labels()
    _make_append_only()


def _create_tasks() -> None:
    op.create_table(
        "task",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("round_id", sa.String, sa.ForeignKey("round.id"), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("prompt_id", sa.String, nullable=False),
        sa.Column("messages", sa.JSON, nullable=False),
        sa.Column("language", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("wanted", sa.Integer, nullable=False),
        sa.Column("done", sa.Integer, nullable=False),
        sa.Column("leased", sa.Integer, nullable=False),
        sa.Column("skips", sa.Integer, nullable=False),
        sa.UniqueConstraint("round_id", "prompt_id"),
        sa.CheckConstraint("state in ('open', 'complete', 'left_out')"),
        sa.CheckConstraint("done >= 0 and leased >= 0 and done + leased <= wanted"),
    )
    op.create_index("task_by_state", "task", ["round_id", "state", "position"])
    op.create_table(
        "response",
        sa.Column("task_id", sa.String, sa.ForeignKey("task.id"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("response_id", sa.String, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("cut_off", sa.Boolean, nullable=False),
        sa.UniqueConstraint("task_id", "response_id"),
    )


def _create_labels() -> None:
    op.create_table(
        "assignment",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("task_id", sa.String, sa.ForeignKey("task.id"), nullable=False),
        sa.Column("labeler_id", sa.Integer, sa.ForeignKey("labeler.id"), nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("display_order", sa.JSON, nullable=False),
        sa.Column("leased_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_ms", sa.BigInteger, nullable=False),
        sa.Column("skip_reason", sa.String),
        sa.UniqueConstraint("task_id", "labeler_id"),
        sa.CheckConstraint("state in ('leased', 'expired', 'done', 'surplus', 'skipped')"),
    )
    op.create_index("assignment_by_labeler", "assignment", ["labeler_id", "state"])
    op.create_index("assignment_by_expiry", "assignment", ["state", "expires_ms"])
    op.create_table(
        "annotation",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("assignment_id", sa.String, sa.ForeignKey("assignment.id"), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("tiers", sa.JSON, nullable=False),
        sa.Column("active_seconds", sa.Float, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("assignment_id", "revision"),
    )


def _make_append_only() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("update", "delete"):
            op.execute(
                f"CREATE TRIGGER annotation_no_{verb} BEFORE {verb} ON annotation "
                "BEGIN SELECT RAISE(ABORT, 'annotations are append-only'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'annotations are append-only'; END $$"
    )
    op.execute(
        "CREATE TRIGGER annotation_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON annotation "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
    )
