"""What Alembic runs for every command."""

from __future__ import annotations

from alembic import context

from tiny_sd_gateway.migrations import VERSION_TABLE
from tiny_sd_gateway.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    compare_server_default=True,
    render_as_batch=True,  # SQLite changes a table by writing it anew
)
with context.begin_transaction():
    context.run_migrations()
