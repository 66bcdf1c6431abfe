"""Real databases, fresh for each test: SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from postgresql_server import PostgreSQL

from tiny_sd_gateway import database as module
from tiny_sd_gateway.database import Database

KINDS = ("sqlite", "postgresql")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No transaction of this process is given up because the machine stands still for a while."""
    for limit in ("PATIENCE_S", "STATEMENT_S", "IDLE_S"):
        monkeypatch.setattr(module, limit, 300.0)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    with PostgreSQL() as server:
        server.execute("CREATE DATABASE migrated")
        asyncio.run(migrate(server.url("migrated")))
        yield server


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite database with our tables and nothing in them."""
    file = tmp_path_factory.mktemp("migrated") / "gateway.db"
    asyncio.run(migrate(f"sqlite:///{file}"))
    return file


@pytest.fixture(scope="session")
def new_database(postgresql: PostgreSQL) -> Callable[[str], str]:
    """Makes a database on the PostgreSQL server like the one that it names, and returns the new one's URL."""
    numbers = itertools.count()

    def make(template: str) -> str:
        name = f"test_{next(numbers)}"
        postgresql.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return postgresql.url(name)

    return make


@pytest.fixture(params=KINDS)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a database with nothing in it."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    return str(request.getfixturevalue("new_database")("template0"))


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a database with our tables and nothing in them."""
    if request.param == "sqlite":
        file: Path = request.getfixturevalue("migrated_file")
        (tmp_path / "gateway.db").write_bytes(file.read_bytes())
        return f"sqlite:///{tmp_path / 'gateway.db'}"
    return str(request.getfixturevalue("new_database")("migrated"))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url) as database:
        yield database


async def migrate(url: str) -> None:
    async with Database(url) as database:
        await database.migrate()
