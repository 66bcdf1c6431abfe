"""What must hold in the database at every moment, whatever happened to it; and orders for it to hold."""

from __future__ import annotations

from collections import defaultdict
from itertools import accumulate
from typing import Any

from sqlalchemy import select, update

from tiny_sd_client.parameters import parse
from tiny_sd_gateway.database import Database
from tiny_sd_gateway.generations import Api, Idempotency, NewPicture, Order, State
from tiny_sd_gateway.tables import EntryRow, GenerationRow, KeyRow, PictureRow

TTL_S = 3600.0
LEASE_S = 60.0
FILES = (NewPicture(seed=7, media_type="image/jpeg", data=b"first"), NewPicture(8, "image/jpeg", b"second"))


def order(key_id: int, api: Api = Api.V2, price: int = 1000, name: str | None = None, prompt: str = "a cat") -> Order:
    """For a picture of ``prompt``; ``name``: its idempotency key."""
    parameters = parse({"prompt": prompt, "seed": 7, "samples": 2})
    idempotency = Idempotency.of(name, api, {"prompt": prompt}) if name else None
    return Order(key_id, api, "tinysd1.5-txt2img", parameters, price, idempotency)


async def audit(database: Database) -> None:
    """Assert that the books are right."""
    async with database.reading() as session:
        keys = (await session.scalars(select(KeyRow))).all()
        entries = (await session.scalars(select(EntryRow).order_by(EntryRow.key_id, EntryRow.sequence))).all()
        generations = (await session.scalars(select(GenerationRow))).all()
        pictures = (await session.scalars(select(PictureRow.generation_id))).all()

    of_key: dict[int, list[EntryRow]] = defaultdict(list)
    of_generation: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for entry in entries:
        of_key[entry.key_id].append(entry)
        if entry.generation_id:
            of_generation[entry.generation_id].append((entry.kind, entry.amount))
    assert set(of_key) <= {key.id for key in keys}
    for ledger in of_key.values():
        assert [entry.sequence for entry in ledger] == list(range(1, len(ledger) + 1))
        assert [entry.balance for entry in ledger] == list(accumulate(entry.amount for entry in ledger))
        assert min(entry.balance for entry in ledger) >= 0

    assert set(of_generation) == {row.id for row in generations}
    for row in generations:
        closing = {
            State.COMPLETED: [("settle", 0)],
            State.FAILED: [("refund", row.price)],
            State.CANCELLED: [("refund", row.price)],
        }.get(State(row.state), [])
        assert of_generation[row.id] == [("reserve", -row.price), *closing], row.state
    assert set(pictures) <= {row.id for row in generations if row.state == State.COMPLETED}


async def change(database: Database, row: type[Any], identity: Any, **values: Any) -> None:
    """Set columns of a row behind the back of the code under test: time passes, somebody meddles."""
    async with database.writing() as session:
        found = await session.get_one(row, identity)
        for name, value in values.items():
            setattr(found, name, value)


async def let_lease_run_out(database: Database, generation_id: str) -> None:
    await change(database, GenerationRow, generation_id, lease_until=1)


async def let_all_leases_run_out(url: str) -> None:
    """What a dead gateway held is free; there must be no other."""
    leased = GenerationRow.lease_until.is_not(None)
    async with Database(url) as database, database.writing() as session:
        await session.execute(update(GenerationRow).where(leased).values(lease_until=1))
