"""The connection to SQLite or PostgreSQL, and transactions on it.

Nothing here or in the modules above it depends on which of the two it is, but for three things that this module levels:

- A writing transaction must not decide on what another one is changing. SQLite lets one writer in at a time, from the
  transaction's first moment (BEGIN IMMEDIATE). PostgreSQL locks the rows that the statements name (FOR UPDATE).
- SQLite's writers do not queue, they poll, and an unlucky one loses for as long as others come. So those of one process
  queue here first.
- Every time is the database's: several machines may share it, and their clocks differ.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import asyncpg
from sqlalchemy import BigInteger, Connection, event, func, select, text
from sqlalchemy.engine import URL, Compiled, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import FunctionElement

from tiny_sd_gateway import migrations
from tiny_sd_gateway.faults import DatabaseUnavailable, ForeignDatabase
from tiny_sd_gateway.tables import Base

P = ParamSpec("P")
T = TypeVar("T")

SQLITE = "sqlite"
POSTGRESQL = "postgresql"
_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}

PATIENCE_S = 20.0
"""Seconds that a transaction waits for a connection, and as many for another transaction, before it gives up."""
STATEMENT_S = 60.0
"""Seconds after which a statement to PostgreSQL is given up: the server hangs, or the network swallows everything."""
IDLE_S = 20.0
"""Seconds after which PostgreSQL ends a transaction that does nothing: its gateway hangs, or its machine is lost."""
# Two replicas that start at once; the number is ours, "tiny sd" in ASCII.
_MIGRATION_LOCK = int.from_bytes(b"tiny sd", "big")
_MIGRATION_PATIENCE_S = 600.0
# Mistakes of ours or of our tables, not of the connection.
_OUR_MISTAKES = (IntegrityError, ProgrammingError, DataError, NotSupportedError)
# The drivers' own errors come from making a connection, which SQLAlchemy hands on as they are.
_TROUBLES = (DBAPIError, PoolTimeout, sqlite3.Error, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)


class now(FunctionElement[int]):  # noqa: N801 - a function of SQL, named like its kind in SQLAlchemy
    """Milliseconds since 1970 by the database's clock, at the moment of the statement, not of the transaction."""

    type = BigInteger()
    inherit_cache = True


@compiles(now, SQLITE)
def _now_in_sqlite(element: now, compiler: Compiled, **_: Any) -> str:
    return "CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"


@compiles(now, POSTGRESQL)
def _now_in_postgresql(element: now, compiler: Compiled, **_: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"


async def now_ms(session: AsyncSession) -> int:
    """Milliseconds since 1970 by the database's clock."""
    return (await session.scalars(select(now()))).one()


def moment(milliseconds: int) -> datetime:
    """The time that a column holds, in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def engine_url(url: str) -> URL:
    """The URL with our driver. Raises ValueError for one that no gateway can use; passwords stay out of the message."""
    allowed = "allowed: sqlite:///FILE, or postgresql://USER:PASSWORD@HOST/DATABASE"
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError(f"is no database URL; {allowed}") from None
    kind = parsed.drivername.partition("+")[0]
    if parsed.drivername not in {*_DRIVERS, *_DRIVERS.values()}:
        raise ValueError(f"got a URL of {parsed.drivername}; {allowed}")
    if kind == SQLITE and parsed.database in (None, "", ":memory:"):
        raise ValueError(f"names no file; {allowed}")
    if kind == SQLITE and parsed.query:
        raise ValueError(f"has options, which SQLite's may not; {allowed}")
    # libpq's name for it, which hosted databases put into the URLs that they show.
    query = {"ssl" if name == "sslmode" else name: value for name, value in parsed.query.items()}
    return parsed.set(drivername=_DRIVERS[kind], query=query)


class Database:
    """One database and the connections to it, which are made when they are needed.

    An asynchronous context manager that closes them at its end.
    """

    def __init__(self, url: str) -> None:
        """``url``: as :func:`engine_url` takes it, and raises for it."""
        self.url = engine_url(url)
        self.name = self.url.get_backend_name()
        if self.name == SQLITE:
            self.engine = _sqlite_engine(self.url)
        else:
            self.engine = _postgresql_engine(self.url, PATIENCE_S, STATEMENT_S)
        self._writing_engine = self.engine.execution_options(begin="BEGIN IMMEDIATE")
        self._reading_sessions = async_sessionmaker(self.engine, expire_on_commit=False)
        self._writing_sessions = async_sessionmaker(self._writing_engine, expire_on_commit=False)
        self._queue = asyncio.Lock() if self.name == SQLITE else None
        self._under_way: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections, after what :func:`undisturbed` has under way."""
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await self.engine.dispose()

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """What ``work`` returns or raises; it goes on to its end even if the caller is cancelled meanwhile."""
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def ping(self) -> None:
        """Raises :class:`DatabaseUnavailable` unless the database answers."""
        async with self.reading() as session:
            await session.execute(select(1))

    async def migrate(self) -> None:
        """Bring the tables to what this gateway knows; several processes may do so at once.

        Raises :class:`DatabaseUnavailable`, :class:`ForeignDatabase` and :class:`DatabaseTooNew`.
        """
        with self._translated():
            if self.name == SQLITE:
                file = Path(self.url.database or "").absolute()
                _make_private(file)
                async with self.engine.connect() as connection:
                    await connection.run_sync(migrations.check, self.shown)
                await asyncio.to_thread(_write_ahead, file)
                await self._upgrade(self._writing_engine)
            else:
                patient = _postgresql_engine(self.url, lock_s=_MIGRATION_PATIENCE_S, statement_s=None)
                try:
                    await self._upgrade(patient)
                finally:
                    await patient.dispose()

    async def _upgrade(self, engine: AsyncEngine) -> None:
        try:
            async with engine.begin() as connection:
                if self.name == POSTGRESQL:
                    await connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
                await connection.run_sync(migrations.upgrade, self.shown)
        except ProgrammingError as error:
            # Here it is no mistake of ours: the user may use the database, but not make tables in it.
            raise DatabaseUnavailable(f"{self.shown}: {error.orig}") from error

    @property
    def shown(self) -> str:
        """The URL as messages may show it."""
        return self.url.set(drivername=self.name, query={}).render_as_string(hide_password=True)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A transaction that only reads, and sees one state of the database on SQLite.

        Raises :class:`DatabaseUnavailable` from whatever statement meets it.
        """
        with self._translated():
            async with self._reading_sessions() as session:
                yield session

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """A transaction that writes: committed at its end, rolled back by exceptions.

        Raises :class:`DatabaseUnavailable` from whatever statement meets it. If it comes from the end, the transaction
        may have been committed or not.
        """
        with self._translated():
            async with self._turn(), self._writing_sessions.begin() as session:
                yield session

    async def lock_table(self, session: AsyncSession, table: type[Base]) -> None:
        """Keep all others from writing into ``table`` until the transaction ends."""
        if self.name == POSTGRESQL:  # SQLite's writing transactions are alone anyway
            await session.execute(text(f"LOCK TABLE {table.__tablename__} IN SHARE ROW EXCLUSIVE MODE"))

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """The turn among the writers of this process."""
        if self._queue is None:
            yield
            return
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._queue.acquire()
        except TimeoutError:
            raise DatabaseUnavailable(f"{self.shown}: more transactions wait than it writes") from None
        try:
            yield
        finally:
            self._queue.release()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors of connections, under whatever name they come, as ours."""
        try:
            yield
        except _OUR_MISTAKES:
            raise
        except _TROUBLES as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            if "file is not a database" in str(cause):
                raise ForeignDatabase(f"{self.shown}: is no SQLite database") from error
            raise DatabaseUnavailable(f"{self.shown}: {str(cause) or type(cause).__name__}") from error


def undisturbed(
    function: Callable[Concatenate[Database, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Database, P], Coroutine[Any, Any, T]]:
    """``function``, going on to its end even if its caller is cancelled meanwhile.

    Callers of a server leave at any moment. A statement that is broken off costs its connection, and leaves it open
    whether it happened; transactions are short enough to be finished instead.
    """

    @wraps(function)
    async def finished(database: Database, /, *arguments: P.args, **named: P.kwargs) -> T:
        return await database.finish(function(database, *arguments, **named))

    return finished


def _sqlite_engine(url: URL) -> AsyncEngine:
    engine = create_async_engine(
        url,
        hide_parameters=True,  # messages would carry prompts into logs
        # The driver must not begin transactions by itself: _begin does.
        connect_args={"isolation_level": None, "timeout": PATIENCE_S},
        pool_timeout=PATIENCE_S,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def _configure(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys = ON")
        # What was accepted survives a power cut as well; NORMAL would do for the end of a process.
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))

    return engine


def _postgresql_engine(url: URL, lock_s: float, statement_s: float | None) -> AsyncEngine:
    return create_async_engine(
        url,
        hide_parameters=True,
        pool_size=10,
        max_overflow=10,
        pool_timeout=PATIENCE_S,
        pool_pre_ping=True,  # the server may have been restarted since a connection was used last
        connect_args={
            "timeout": PATIENCE_S,
            "command_timeout": statement_s,
            "server_settings": {
                "application_name": "tiny-sd-gateway",
                "lock_timeout": str(round(lock_s * 1000)),
                "idle_in_transaction_session_timeout": str(round(IDLE_S * 1000)),
            },
        },
    )


def _make_private(file: Path) -> None:
    """Make ``file`` and its folder, if they are not there: prompts and pictures are nobody else's business."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))


def _write_ahead(file: Path) -> None:
    """Have SQLite write ``file`` in a way in which readers and the writer never wait for each other; it stays so."""
    deadline = time.monotonic() + PATIENCE_S
    with closing(sqlite3.connect(file, timeout=PATIENCE_S)) as connection:
        while True:
            try:
                (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError:
                # SQLite does not wait here if another process does the same.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                break
    if mode != "wal":
        raise DatabaseUnavailable(f"{file}: its file system cannot hold a database in WAL mode; use a local one")
