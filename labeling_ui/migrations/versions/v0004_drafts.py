"""Drafts: what a labeler has said about a card and not submitted yet.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0002"


def upgrade() -> None:
    """Adds the table of drafts, one row a card."""
    op.create_table(
        "draft",
        sa.Column("assignment_id", sa.String, sa.ForeignKey("assignment.id"), primary_key=True),
        sa.Column("content", sa.JSON, nullable=False),
        sa.Column("saved_ms", sa.BigInteger, nullable=False),
    )
