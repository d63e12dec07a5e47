"""The tables of the label database. Migrations bring any older database to exactly these.

Times are UTC in milliseconds since 1970. Annotations are append-only, by trigger: an edit is a
new revision. `task.done` and `task.leased` count assignments, and the database itself refuses
more of them than rankings wanted.
"""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

metadata = MetaData()


class AnyText(TypeDecorator[str]):
    """Text with any character. PostgreSQL takes no NUL, so there it is written as an escape."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        """As it is stored."""
        if value is None or dialect.name != "postgresql":
            return value
        return value.replace("\ufdd0", "\ufdd01").replace("\x00", "\ufdd00")

    def process_result_value(self, value: str | None, dialect: Any) -> str | None:
        """As it was given."""
        if value is None or dialect.name != "postgresql":
            return value
        return value.replace("\ufdd00", "\x00").replace("\ufdd01", "\ufdd0")


def _number(name: str, default: int = 0) -> Column[int]:
    return Column(name, Integer, nullable=False, server_default=str(default))


def _words(name: str, default: str = "") -> Column[str]:
    return Column(name, String, nullable=False, server_default=default)


setting = Table(
    "setting",
    metadata,
    Column("key", String, primary_key=True),
    Column("value", String, nullable=False),
)

# `state` is open, paused (no new cards for now) or closed (none ever); frozen has a digest.
round_ = Table(
    "round",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("panel", String, nullable=False),
    Column("rankings_per_prompt", Integer, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("frozen_ms", BigInteger),
    Column("frozen_digest", String),
    _words("state", "open"),
    Column("settings", JSON),
    _words("policy_version"),
)

# Sums over the round's main tasks, moved in the transactions that move the tasks.
round_count = Table(
    "round_count",
    metadata,
    Column("round_id", ForeignKey("round.id"), primary_key=True),
    _number("tasks"),
    _number("left_out"),
    _number("wanted"),
    _number("done"),
)

# `kind`: main, gold, attention, repeat; qualify and adjudicate are reserved. Only main tasks
# count towards a round. `released`: had all its labelers once and wants another again.
task = Table(
    "task",
    metadata,
    Column("id", String, primary_key=True),
    Column("round_id", ForeignKey("round.id"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("prompt_id", String, nullable=False),
    Column("messages", JSON, nullable=False),
    Column("language", String, nullable=False),
    Column("state", String, nullable=False),
    Column("wanted", Integer, nullable=False),
    Column("done", Integer, nullable=False, default=0),
    Column("leased", Integer, nullable=False, default=0),
    Column("skips", Integer, nullable=False, default=0),
    _words("kind", "main"),
    Column("released", Boolean, nullable=False, server_default="0"),
    Column("repeat_of", String),
    Column("for_labeler_id", Integer),
    Column("selection_method", String),
    Column("selection_prob", Float),
    UniqueConstraint("round_id", "prompt_id"),
    CheckConstraint("state in ('open', 'complete', 'left_out')"),
    CheckConstraint("done >= 0 and leased >= 0 and done + leased <= wanted"),
    Index("task_by_state", "round_id", "state", "position"),
    Index("task_next", "round_id", "kind", "state", "position"),
    Index("task_released", "round_id", "kind", "state", "released", "position"),
)

# What must hold in a ranking of a gold or attention task: pairs of response ids, better first.
gold = Table(
    "gold",
    metadata,
    Column("task_id", ForeignKey("task.id"), primary_key=True),
    Column("pairs", JSON, nullable=False),
)

# `leak` is the phrase in which a response says what wrote it; empty for most.
response = Table(
    "response",
    metadata,
    Column("task_id", ForeignKey("task.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("response_id", String, nullable=False),
    Column("text", AnyText, nullable=False),
    Column("cut_off", Boolean, nullable=False),
    _words("leak"),
    UniqueConstraint("task_id", "response_id"),
)

# `epoch` is part of every sign-in cookie: raising it signs the person out everywhere.
labeler = Table(
    "labeler",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("pseudonym", String, nullable=False, unique=True),
    Column("created_ms", BigInteger, nullable=False),
    _words("role", "labeler"),
    Column("password_hash", String),
    Column("active", Boolean, nullable=False, server_default="1"),
    _number("epoch"),
)

# The key itself is only in the link; the database keeps its SHA-256.
invitation = Table(
    "invitation",
    metadata,
    Column("key_sha256", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("role", String, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("used_ms", BigInteger),
)

guideline = Table(
    "guideline",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("text_en", Text, nullable=False),
    Column("text_zh", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
)

acceptance = Table(
    "acceptance",
    metadata,
    Column("labeler_id", ForeignKey("labeler.id"), primary_key=True),
    Column("version", ForeignKey("guideline.version"), primary_key=True),
    Column("accepted_ms", BigInteger, nullable=False),
)

# One labeler in one round. Every open main task before `cursor` is settled by this labeler,
# full, or marked released: so the next one is found without looking at old ones.
participation = Table(
    "participation",
    metadata,
    Column("round_id", ForeignKey("round.id"), primary_key=True),
    Column("labeler_id", ForeignKey("labeler.id"), primary_key=True),
    _number("cursor"),
    _number("claims"),
    _number("done"),
    _number("surplus"),
    _number("skipped"),
)

# `display_order[i]` lists the positions of the identical responses shown in place i.
assignment = Table(
    "assignment",
    metadata,
    Column("id", String, primary_key=True),
    Column("task_id", ForeignKey("task.id"), nullable=False),
    Column("labeler_id", ForeignKey("labeler.id"), nullable=False),
    Column("state", String, nullable=False),
    Column("display_order", JSON, nullable=False),
    Column("leased_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("skip_reason", String),
    Column("round_id", String),
    Column("finished_ms", BigInteger),
    Column("current_annotation", String),
    UniqueConstraint("task_id", "labeler_id"),
    CheckConstraint("state in ('leased', 'expired', 'done', 'surplus', 'skipped')"),
    Index("assignment_by_labeler", "labeler_id", "state"),
    Index("assignment_by_expiry", "state", "expires_ms"),
    Index("assignment_leases", "round_id", "state", "expires_ms"),
    Index("assignment_held", "labeler_id", "round_id", "state"),
    Index("assignment_history", "labeler_id", "finished_ms"),
)

annotation = Table(
    "annotation",
    metadata,
    Column("id", String, primary_key=True),
    Column("assignment_id", ForeignKey("assignment.id"), nullable=False),
    Column("revision", Integer, nullable=False, default=1),
    Column("tiers", JSON, nullable=False),
    Column("active_seconds", Float, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("gaps", JSON),
    Column("bar", Integer),
    Column("flags", JSON),
    Column("criteria", JSON),
    Column("rationale", AnyText, nullable=False, server_default=""),
    Column("wall_seconds", Float),
    Column("moves", Integer),
    Column("guideline_version", Integer),
    UniqueConstraint("assignment_id", "revision"),
)

# What a labeler has said about a card and not submitted: the page's own form of it. It goes when
# the card is submitted or skipped.
draft = Table(
    "draft",
    metadata,
    Column("assignment_id", ForeignKey("assignment.id"), primary_key=True),
    Column("content", JSON, nullable=False),
    Column("saved_ms", BigInteger, nullable=False),
)

# Reserved for disputes settled by a second reader.
adjudication = Table(
    "adjudication",
    metadata,
    Column("task_id", ForeignKey("task.id"), primary_key=True),
    Column("labeler_id", ForeignKey("labeler.id"), nullable=False),
    Column("tiers", JSON, nullable=False),
    Column("note", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("actor", String, nullable=False),
    Column("action", String, nullable=False),
    Column("object", String, nullable=False),
    Column("detail", JSON),
)
