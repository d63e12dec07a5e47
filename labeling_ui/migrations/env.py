"""Alembic's entry: runs the revisions in the transaction that `database.py` has open."""

from alembic import context

from labeling_ui.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
context.run_migrations()
