"""The tables' history, for Alembic, and the way from wherever a database stands to its end.

A new step: change tables.py, then ``python -m tiny_sd_gateway.migrations "what it does"`` writes a draft of it.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from tiny_sd_gateway.faults import DatabaseTooNew, ForeignDatabase

VERSION_TABLE = "tiny_sd_gateway_version"
"""Where the database says which step it stands at: not Alembic's usual name, which others use too."""


def configuration(connection: Connection | None = None) -> Config:
    """Alembic's configuration; env.py migrates ``connection``, within the transaction that is open there."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def check(connection: Connection, shown: str) -> None:
    """Look whether the database is empty or ours; ``shown`` names it in messages.

    Raises :class:`ForeignDatabase` and :class:`DatabaseTooNew`.
    """
    tables = set(inspect(connection).get_table_names())
    if tables and VERSION_TABLE not in tables:
        some = ", ".join(sorted(tables)[:3])
        raise ForeignDatabase(
            f"{shown}: holds tables that are not the gateway's ({some}); give it a database of its own"
        )
    stands_at = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()
    known = {step.revision for step in ScriptDirectory.from_config(configuration()).walk_revisions()}
    if stands_at is not None and stands_at not in known:
        raise DatabaseTooNew(f"{shown}: was written by a newer gateway (step {stands_at}); start that one instead")


def upgrade(connection: Connection, shown: str) -> None:
    """Bring the tables to the newest step, within the transaction that is open. Raises as :func:`check` does."""
    check(connection, shown)
    command.upgrade(configuration(connection), "head")
