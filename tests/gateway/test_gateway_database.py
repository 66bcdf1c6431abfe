"""Migrations; databases that are not there, or not ours; transactions that get in each other's way."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from books import audit
from postgresql_server import PostgreSQL
from sqlalchemy import Connection, inspect, text

from tiny_sd_gateway import database as module
from tiny_sd_gateway import keys, ledger, migrations
from tiny_sd_gateway.database import Database, now_ms
from tiny_sd_gateway.faults import DatabaseTooNew, DatabaseUnavailable, ForeignDatabase
from tiny_sd_gateway.tables import Base

pytestmark = pytest.mark.anyio

MIGRATE_WHEN_TOLD = """
import asyncio, sys
from tiny_sd_gateway import database as module
from tiny_sd_gateway.database import Database

module.PATIENCE_S = 300

async def migrate():
    async with Database(sys.argv[1]) as database:
        await database.migrate()

print("ready", flush=True)
sys.stdin.readline()
asyncio.run(migrate())
"""


def shape(connection: Connection) -> dict[str, list[str]]:
    """All that the database says of our tables, in an order that does not depend on when they were made."""
    found = inspect(connection)
    return {
        table: sorted(
            json.dumps(part, sort_keys=True, default=str)
            for part in (
                *found.get_columns(table),
                found.get_pk_constraint(table),
                *found.get_foreign_keys(table),
                *found.get_unique_constraints(table),
                *found.get_check_constraints(table),
                *found.get_indexes(table),
            )
        )
        for table in Base.metadata.tables
    }


async def answers(database: Database) -> bool:
    try:
        await database.ping()
    except DatabaseUnavailable:
        return False
    return True


async def on_connection(database: Database, use: Callable[..., Any], *arguments: Any) -> Any:
    async with database.engine.begin() as connection:
        return await connection.run_sync(use, *arguments)


def tables(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names())


async def test_migrations_make_the_tables_that_the_models_describe(
    database: Database, new_database: Callable[[str], str], tmp_path: Path
) -> None:
    empty = f"sqlite:///{tmp_path / 'models.db'}" if database.name == "sqlite" else new_database("template0")
    async with Database(empty) as models:
        await on_connection(models, Base.metadata.create_all)
        assert await on_connection(database, shape) == await on_connection(models, shape)
    # Alembic's own opinion, by which it would draft the next migration.
    await on_connection(database, lambda connection: command.check(migrations.configuration(connection)))


async def test_migrating_again_changes_nothing(database: Database) -> None:
    new = await keys.create(database, "me", 5000)
    before = await on_connection(database, shape)
    await database.migrate()
    assert await on_connection(database, shape) == before
    assert await ledger.balance(database, new.key.id) == 5000


async def test_several_processes_may_migrate_an_empty_database_at_once(empty_url: str) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", MIGRATE_WHEN_TOLD, empty_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    errors = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0] * 6, errors
    async with Database(empty_url) as database:
        await keys.create(database, "me", 5000)
        await audit(database)


async def test_who_comes_while_another_migrates_waits_and_finds_it_done(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def upgrade_slowly(*arguments: Any) -> None:
        time.sleep(0.5)
        command_upgrade(*arguments)

    async def migrate() -> None:
        async with Database(empty_url) as database:
            await database.migrate()

    command_upgrade = command.upgrade
    monkeypatch.setattr(command, "upgrade", upgrade_slowly)
    await asyncio.gather(*(asyncio.to_thread(asyncio.run, migrate()) for _ in range(3)))


async def test_a_migration_that_fails_leaves_nothing_behind(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def upgrade_and_fail(*arguments: Any) -> None:
        command_upgrade(*arguments)
        raise OSError("the power is gone")

    command_upgrade = command.upgrade
    async with Database(empty_url) as database:
        with monkeypatch.context() as patched:
            patched.setattr(command, "upgrade", upgrade_and_fail)
            with pytest.raises(DatabaseUnavailable, match="the power is gone"):
                await database.migrate()
        assert await on_connection(database, tables) == set()
        await database.migrate()
        assert await on_connection(database, tables) == {*Base.metadata.tables, migrations.VERSION_TABLE}


async def test_somebody_elses_tables_are_left_alone(empty_url: str) -> None:
    async with Database(empty_url) as database:
        async with database.writing() as session:
            await session.execute(text("CREATE TABLE customers (id INTEGER)"))
        with pytest.raises(ForeignDatabase, match=r"holds tables that are not the gateway's \(customers\)"):
            await database.migrate()
        assert await on_connection(database, tables) == {"customers"}
        if database.name == "sqlite":
            async with database.reading() as session:
                assert await session.scalar(text("PRAGMA journal_mode")) == "delete"


async def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear Sir or Madam, " * 100)
    async with Database(f"sqlite:///{tmp_path / 'letter.txt'}") as database:
        with pytest.raises(ForeignDatabase, match=r"letter.txt: is no SQLite database"):
            await database.migrate()
    assert (tmp_path / "letter.txt").read_text().startswith("Dear Sir")


async def test_a_database_of_a_newer_gateway_is_refused(database: Database) -> None:
    async with database.writing() as session:
        await session.execute(text(f"UPDATE {migrations.VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(DatabaseTooNew, match=r"was written by a newer gateway \(step 9999\)"):
        await database.migrate()


@pytest.mark.parametrize("secret", ["me:s3cret@127.0.0.1:9/gateway", "me:x@127.0.0.1:9/gateway?password=s3cret"])
async def test_a_server_that_is_not_there_is_told_without_the_password(secret: str) -> None:
    async with Database(f"postgresql://{secret}") as database:
        for use in (database.ping, database.migrate):
            with pytest.raises(
                DatabaseUnavailable, match=r"^postgresql://me:\*\*\*@127.0.0.1:9/gateway: .*Connect call failed"
            ):
                await use()


async def test_a_database_that_the_server_does_not_have_is_told(postgresql: PostgreSQL) -> None:
    async with Database(postgresql.url("nowhere")) as database:
        with pytest.raises(DatabaseUnavailable, match='database "nowhere" does not exist'):
            await database.migrate()


async def test_a_server_that_lets_nobody_make_tables_is_told(
    postgresql: PostgreSQL, new_database: Callable[[str], str]
) -> None:
    postgresql.execute("CREATE ROLE guest LOGIN")
    async with Database(new_database("template0").replace("gateway@", "guest@")) as database:
        with pytest.raises(DatabaseUnavailable, match="permission denied for schema public"):
            await database.migrate()


async def test_a_server_that_does_not_get_done_is_told(
    new_database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STATEMENT_S", 0.3)
    async with Database(new_database("migrated")) as database:
        with pytest.raises(DatabaseUnavailable, match="TimeoutError"):
            async with database.reading() as session:
                await session.execute(text("SELECT pg_sleep(30)"))
        async with asyncio.timeout(60):
            while not await answers(database):  # which has no more time than that
                await asyncio.sleep(0.1)


async def test_a_file_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, problem in (
        (tmp_path / "file" / "gateway.db", "Not a directory|File exists"),
        (tmp_path, "Is a directory"),
    ):
        async with Database(f"sqlite:///{path}") as database:
            with pytest.raises(DatabaseUnavailable, match=problem):
                await database.migrate()


async def test_the_file_and_its_folder_are_made_for_their_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "gateway.db"
    async with Database(f"sqlite:///{file}") as database:
        await database.migrate()
        assert file.parent.stat().st_mode & 0o777 == 0o700
        assert {each.stat().st_mode & 0o777 for each in file.parent.iterdir()} == {0o600}


async def test_a_server_that_was_restarted_is_used_again() -> None:
    with PostgreSQL() as server:
        async with Database(server.url("postgres")) as database:
            await database.migrate()
            server.stop()
            with pytest.raises(DatabaseUnavailable):
                await database.ping()
            with pytest.raises(DatabaseUnavailable):
                await keys.create(database, "me")
            await asyncio.to_thread(server.start)
            await keys.create(database, "me")


async def test_a_connection_that_breaks_within_a_transaction_is_told(
    postgresql: PostgreSQL, new_database: Callable[[str], str]
) -> None:
    async with Database(new_database("migrated")) as database:
        with pytest.raises(DatabaseUnavailable):
            async with database.writing() as session:
                await session.execute(text("CREATE TABLE half_done (id INTEGER)"))
                own = await session.scalar(text("SELECT pg_backend_pid()"))
                await asyncio.to_thread(postgresql.execute, f"SELECT pg_terminate_backend({own})")
                await session.execute(text("SELECT 1"))
        assert "half_done" not in await on_connection(database, tables)


async def test_the_databases_clock_goes_on_within_a_transaction(database: Database) -> None:
    before = time.time() * 1000
    async with database.writing() as session:
        first = await now_ms(session)
        await asyncio.sleep(0.05)
        second = await now_ms(session)
    after = time.time() * 1000
    assert second - first >= 50
    assert before - 1 <= first < second <= after + 1  # those of the database are rounded


async def test_who_reads_does_not_wait_for_who_writes(database: Database) -> None:
    new = await keys.create(database, "me", 5000)
    async with database.writing() as session:
        await ledger.lock(session, new.key.id)
        await ledger.append(session, new.key.id, ledger.Kind.GRANT, 1000, at=0)
        assert await ledger.balance(database, new.key.id) == 5000
    assert await ledger.balance(database, new.key.id) == 6000


async def test_who_waits_too_long_for_another_writer_is_told(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Database(database_url)
    monkeypatch.setattr(module, "PATIENCE_S", 0.2)
    async with one, Database(database_url) as other:
        new = await keys.create(one, "me")
        async with one.writing() as session:
            await ledger.lock(session, new.key.id)
            with pytest.raises(DatabaseUnavailable):
                await ledger.credit(other, new.key.id, 1000)  # as another process meets it
            if one.name == "sqlite":
                with pytest.raises(DatabaseUnavailable, match="more transactions wait"):
                    await ledger.credit(one, new.key.id, 1000)
        assert await ledger.credit(one, new.key.id, 1000) == 1000


async def test_a_gateway_that_hangs_within_a_transaction_loses_its_locks(
    new_database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_database("migrated")
    async with Database(url) as other:
        new = await keys.create(other, "me")
        monkeypatch.setattr(module, "IDLE_S", 0.5)
        async with Database(url) as hanging:
            with pytest.raises(DatabaseUnavailable):
                async with hanging.writing() as session:
                    await ledger.lock(session, new.key.id)
                    assert await ledger.credit(other, new.key.id, 1000) == 1000
                    await ledger.append(session, new.key.id, ledger.Kind.GRANT, 1, at=0)
        await audit(other)


async def test_many_writers_of_one_process_all_get_their_turn(database: Database) -> None:
    new = await keys.create(database, "me")
    balances = await asyncio.gather(*(ledger.credit(database, new.key.id, 1) for _ in range(100)))
    assert sorted(balances) == list(range(1, 101))
    await audit(database)


async def test_cancelled_callers_leave_neither_locks_nor_half_transactions(database_url: str) -> None:
    dice = random.Random(5)
    async with Database(database_url) as database:  # which waits for what they left under way when it closes
        new = await keys.create(database, "me")
        for _ in range(10):
            tasks = [asyncio.create_task(ledger.credit(database, new.key.id, 1)) for _ in range(20)]
            for task in dice.sample(tasks, 15):
                await asyncio.sleep(dice.uniform(0, 0.004))
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(outcome, (int, asyncio.CancelledError)) for outcome in outcomes)
    async with Database(database_url) as database:
        done = await ledger.balance(database, new.key.id)
        assert await ledger.credit(database, new.key.id, 1) == done + 1
        await audit(database)


def test_sqlite_commits_survive_a_power_cut_and_writers_wait_for_their_turn(migrated_file: Path) -> None:
    async def pragmas() -> dict[str, Any]:
        async with Database(f"sqlite:///{migrated_file}") as database, database.reading() as session:
            names = ("journal_mode", "synchronous", "foreign_keys")
            return {name: await session.scalar(text(f"PRAGMA {name}")) for name in names}

    assert asyncio.run(pragmas()) == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    # WAL is a property of the file: other programs, such as a backup, find it so.
    assert sqlite3.connect(migrated_file).execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("sqlite:///x.db", "sqlite+aiosqlite:///x.db"),
        ("sqlite+aiosqlite:////x.db", "sqlite+aiosqlite:////x.db"),
        ("postgres://me@host/x", "postgresql+asyncpg://me@host/x"),
        ("postgresql://me@host/x?sslmode=require", "postgresql+asyncpg://me@host/x?ssl=require"),
    ],
)
def test_urls_are_taken_as_people_write_them(given: str, used: str) -> None:
    assert module.engine_url(given).render_as_string(hide_password=False) == used
