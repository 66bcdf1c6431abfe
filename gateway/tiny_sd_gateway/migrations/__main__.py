"""``python -m tiny_sd_gateway.migrations "what it does"`` drafts the next step from how tables.py has changed."""

import sys

from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from tiny_sd_gateway.migrations import configuration, upgrade

with create_engine("sqlite://").begin() as connection:
    upgrade(connection, "the draft")
    steps = ScriptDirectory.from_config(configuration()).walk_revisions()
    command.revision(configuration(connection), sys.argv[1], autogenerate=True, rev_id=f"{len(list(steps)) + 1:04}")
