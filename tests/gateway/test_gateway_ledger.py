"""The ledger: what it adds up to, and what the database refuses whoever asks for it."""

from __future__ import annotations

import asyncio

import pytest
from books import LEASE_S, audit, order
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from tiny_sd_gateway import generations, keys, leases, ledger
from tiny_sd_gateway.database import Database
from tiny_sd_gateway.faults import InsufficientCredits, UnknownKey
from tiny_sd_gateway.generations import Generation

pytestmark = pytest.mark.anyio

ENTRY = (
    "INTO ledger (key_id, sequence, kind, amount, balance, generation_id, at, note) "
    "VALUES (:key_id, :sequence, :kind, :amount, :balance, :generation_id, 0, '')"
)


@pytest.fixture
async def key_id(database: Database) -> int:
    """A key with five credits."""
    return (await keys.create(database, "me", 5000)).key.id


@pytest.fixture
async def reserved(database: Database, key_id: int) -> Generation:
    """One of one credit, so that the key has two entries and four credits left."""
    return await generations.submit(database, order(key_id))


async def run(database: Database, statement: str, **values: object) -> None:
    async with database.writing() as session:
        await session.execute(text(statement), values)


async def test_credits_come_and_go_back(database: Database, key_id: int) -> None:
    assert await ledger.credit(database, key_id, 1) == 5001
    assert await ledger.credit(database, key_id, -5001) == 0
    await audit(database)


async def test_no_more_is_taken_back_than_there_is(database: Database, key_id: int) -> None:
    with pytest.raises(InsufficientCredits, match=r"not enough credits: 5.001 needed, 5 left") as refusal:
        await ledger.credit(database, key_id, -5001)
    assert (refusal.value.price, refusal.value.balance) == (5001, 5000)
    assert await ledger.balance(database, key_id) == 5000


async def test_a_key_that_does_not_exist_has_nothing_and_gets_nothing(database: Database) -> None:
    assert await ledger.balance(database, 99) == 0
    with pytest.raises(UnknownKey):
        await ledger.credit(database, 99, 1000)


async def test_of_many_that_spend_at_once_as_many_succeed_as_there_are_credits(database_url: str) -> None:
    async with Database(database_url) as one, Database(database_url) as other:
        rich, poor = [(await keys.create(one, name, 5500)).key.id for name in ("rich", "poor")]
        await ledger.credit(one, rich, 100_000)
        outcomes = await asyncio.gather(
            *(
                generations.submit(database, order(key_id))
                for _ in range(8)
                for database in (one, other)
                for key_id in (rich, poor)
            ),
            return_exceptions=True,
        )
        assert len([outcome for outcome in outcomes if isinstance(outcome, Generation)]) == 16 + 5
        assert len([outcome for outcome in outcomes if isinstance(outcome, InsufficientCredits)]) == 11
        assert await ledger.balance(one, poor) == 500
        assert await ledger.balance(one, rich) == 89_500
        await audit(one)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger SET amount = 1",
        "UPDATE ledger SET note = 'nothing to see here'",
        "DELETE FROM ledger WHERE sequence = 2",
        "DELETE FROM ledger",
    ],
)
@pytest.mark.usefixtures("reserved")
async def test_no_entry_is_changed_or_removed(database: Database, statement: str) -> None:
    with pytest.raises(IntegrityError, match="the ledger only grows"):
        await run(database, statement)
    await audit(database)


@pytest.mark.parametrize("table", ["ledger", "generations", "keys"])
@pytest.mark.usefixtures("reserved")
async def test_the_ledger_is_not_emptied(database: Database, table: str) -> None:
    if database.name == "postgresql":
        with pytest.raises(IntegrityError, match="the ledger only grows"):
            await run(database, f"TRUNCATE {table} CASCADE")
    if table != "ledger":
        with pytest.raises(IntegrityError):
            await run(database, f"DELETE FROM {table}")
    await audit(database)


@pytest.mark.parametrize(
    ("entry", "refusal"),
    [
        # sequence, kind, amount, balance, whether it names the reserved generation
        ((4, "grant", 10, 4010, False), "numbered without gaps"),
        ((2, "grant", 10, 4010, False), "numbered without gaps"),
        ((3, "grant", 10, 5000, False), "its balance is the sum"),
        ((3, "grant", -5000, -1000, False), "ck_ledger_balance"),
        ((3, "gift", 10, 4010, False), "ck_ledger_(kind|generation)"),
        ((3, "grant", 10, 4010, True), "ck_ledger_generation"),
        ((3, "reserve", -10, 3990, False), "ck_ledger_generation"),
        ((3, "reserve", -10, 3990, True), "ix_reserved_once|reserved for once"),
        ((3, "settle", -10, 3990, True), "ck_ledger_settle"),
        ((3, "refund", 999, 4999, True), "by what was reserved"),
        ((3, "refund", 1001, 5001, True), "by what was reserved"),
        ((3, "refund", 1000, 5000, False), "reserved for once"),
    ],
)
async def test_an_entry_that_does_not_add_up_is_refused(
    database: Database,
    key_id: int,
    reserved: Generation,
    entry: tuple[int, str, int, int, bool],
    refusal: str,
) -> None:
    sequence, kind, amount, balance, named = entry
    with pytest.raises(IntegrityError, match=refusal):
        await run(
            database,
            f"INSERT {ENTRY}",
            key_id=key_id,
            sequence=sequence,
            kind=kind,
            amount=amount,
            balance=balance,
            generation_id=reserved.id if named else None,
        )
    await audit(database)


@pytest.mark.parametrize("kind", ["settle", "refund"])
@pytest.mark.parametrize("first", ["complete", "cancel"])
async def test_a_generation_is_closed_once(
    database: Database, key_id: int, reserved: Generation, kind: str, first: str
) -> None:
    if first == "cancel":
        await leases.cancel(database, key_id, reserved.id, LEASE_S)
    else:
        claim = await leases.claim(database, "worker", LEASE_S)
        assert claim
        await leases.complete(database, claim.lease, (), 1.0, LEASE_S)
    amount = 1000 if kind == "refund" else 0
    balance = await ledger.balance(database, key_id) + amount
    values = {"key_id": key_id, "sequence": 4, "amount": amount, "balance": balance, "generation_id": reserved.id}
    with pytest.raises(IntegrityError, match=r"ix_closed_once|settled or refunded once"):
        await run(database, f"INSERT {ENTRY}", kind=kind, **values)
    await audit(database)


async def test_the_credits_of_one_key_do_not_close_the_generation_of_another(
    database: Database, reserved: Generation
) -> None:
    other = (await keys.create(database, "other", 1000)).key.id
    with pytest.raises(IntegrityError):
        await run(
            database,
            f"INSERT {ENTRY}",
            key_id=other,
            sequence=2,
            kind="refund",
            amount=1000,
            balance=2000,
            generation_id=reserved.id,
        )
    await audit(database)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_sqlites_way_of_replacing_an_entry_is_refused_as_well(
    database: Database, key_id: int, reserved: Generation
) -> None:
    values = {"key_id": key_id, "kind": "reserve", "amount": -1, "generation_id": reserved.id}
    for sequence, balance in ((2, 4999), (3, 3999)):
        with pytest.raises(IntegrityError):
            await run(database, f"INSERT OR REPLACE {ENTRY}", sequence=sequence, balance=balance, **values)
    await audit(database)
