"""Nothing is lost, done twice or charged twice, whoever is killed in the middle of what."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import storm
from books import FILES, TTL_S, audit
from postgresql_server import PostgreSQL
from sqlalchemy import func, select

from tiny_sd_gateway import generations, keys, leases
from tiny_sd_gateway.database import Database
from tiny_sd_gateway.generations import Api, Depth, State
from tiny_sd_gateway.tables import GenerationRow, PictureRow

KILLS = 15


async def prepare(url: str) -> None:
    async with Database(url) as database:
        await database.migrate()
        assert (await keys.create(database, "rich", 20_000)).key.id == storm.RICH
        assert (await keys.create(database, "poor", 5_000)).key.id == storm.POOR


def rage(url: str, folder: Path, meanwhile: Callable[[], None] = lambda: None) -> list[list[str]]:
    """Let a storm rage, and return what its processes noted."""
    asyncio.run(prepare(url))
    program = [sys.executable, storm.__file__, url, str(folder), "7", str(KILLS)]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as process:
        try:
            meanwhile()
            _, errors = process.communicate()
        finally:
            process.kill()
            (folder / storm.OVER).touch()  # whatever went wrong, its processes do not outlive it
    assert process.returncode == 0, errors
    # A process that is killed while it writes may leave half a line at its end.
    lines = [line for file in folder.glob("*.notes") for line in file.read_text().splitlines(keepends=True)]
    return [line.split() for line in lines if line.endswith("\n")]


async def calm(url: str) -> None:
    """Finish what is left, as the next gateway would."""
    async with Database(url) as database:
        while await generations.depth(database) != Depth(0, 0):
            await leases.sweep(database, storm.ATTEMPTS, TTL_S)
            while claim := await leases.claim(database, "next", 60):
                await leases.complete(database, claim.lease, FILES, 1.0, TTL_S)
            await asyncio.sleep(0.1)


async def check(url: str, notes: list[list[str]]) -> None:
    """Assert that the books are right, and that what the processes noted is what the database says."""
    noted: dict[str, list[list[str]]] = defaultdict(list)
    for what, *words in notes:
        noted[what].append(words)
    async with Database(url) as database:
        await audit(database)
        async with database.reading() as session:
            rows = {row.id: row for row in await session.scalars(select(GenerationRow))}
            counts = select(PictureRow.generation_id, func.count()).group_by(PictureRow.generation_id)
            pictures = dict((await session.execute(counts)).all())

    accepted = {generation_id for (generation_id,) in noted["accepted"]}
    cancelled = {generation_id for (generation_id,) in noted["cancelling"]}
    assert accepted <= set(rows)
    for row in rows.values():
        allowed = {State.COMPLETED}
        if row.api == Api.V1:
            allowed |= {State.FAILED, State.CANCELLED}
        elif row.id in cancelled:
            allowed |= {State.CANCELLED}
        assert row.state in allowed
        assert pictures.get(row.id, 0) == (len(FILES) if row.state == State.COMPLETED else 0)

    completed = Counter(generation_id for generation_id, _ in noted["completed"])
    assert set(completed.values()) == {1}
    for generation_id, attempt in noted["completed"]:
        assert (rows[generation_id].state, rows[generation_id].attempt) == (State.COMPLETED, int(attempt))

    named = {(name, generation_id) for generation_id, name in noted["named"]}
    assert len(named) == len({name for name, _ in named})
    # It was a storm.
    assert len(accepted) > KILLS
    assert completed
    assert max(row.attempt for row in rows.values()) > 1


def test_processes_that_are_killed_lose_nothing_and_charge_nothing_twice(database_url: str, tmp_path: Path) -> None:
    notes = rage(database_url, tmp_path)
    asyncio.run(calm(database_url))
    asyncio.run(check(database_url, notes))


def test_a_database_server_that_crashes_meanwhile_makes_no_difference(tmp_path: Path) -> None:
    with PostgreSQL() as server:
        url = server.url("postgres")

        def crash_twice() -> None:
            for _ in range(2):
                time.sleep(1.5)
                server.crash()
                server.start()

        notes = rage(url, tmp_path, crash_twice)
        asyncio.run(calm(url))
        asyncio.run(check(url, notes))
