"""How an older label database becomes a current one: Alembic revisions, oldest first."""
