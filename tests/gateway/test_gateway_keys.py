"""API keys: how they are made, found and revoked."""

from __future__ import annotations

import asyncio
import hashlib
import re

import pytest
from books import audit
from sqlalchemy import select, text

from tiny_sd_gateway import keys, ledger
from tiny_sd_gateway.database import Database
from tiny_sd_gateway.faults import UnknownKey
from tiny_sd_gateway.tables import EntryRow, KeyRow

pytestmark = pytest.mark.anyio


async def test_a_key_is_made_with_credits_and_found_by_its_secret(database: Database) -> None:
    new = await keys.create(database, "me", 5000, requests_per_minute=7)
    assert re.fullmatch(r"tsd_[A-Za-z0-9_-]{43}", new.secret)
    assert new.key.prefix == new.secret[:12]
    assert await keys.find(database, new.secret) == new.key
    assert (new.key.name, new.key.requests_per_minute, new.key.revoked_at) == ("me", 7, None)
    assert await ledger.balance(database, new.key.id) == 5000
    await audit(database)


async def test_of_a_key_only_its_hash_and_its_beginning_are_stored(database: Database) -> None:
    new = await keys.create(database, "me", 5000)
    async with database.reading() as session:
        row = (await session.scalars(select(KeyRow))).one()
        stored = [
            str(value)
            for table in ("keys", "ledger")
            for found in await session.execute(text(f"SELECT * FROM {table}"))
            for value in found
        ]
    assert row.digest == hashlib.sha256(new.secret.encode()).hexdigest()
    assert not any(new.secret[:13] in value for value in stored)


@pytest.mark.parametrize("secret", ["", "tsd_", "tsd_" + "A" * 43, "x" * 100_000, "tsd_\x00", "tsd_ü", "tsd_\udcff"])
async def test_what_is_no_key_is_unknown(database: Database, secret: str) -> None:
    await keys.create(database, "me")
    with pytest.raises(UnknownKey):
        await keys.find(database, secret)


async def test_the_beginning_of_a_key_does_not_open_anything(database: Database) -> None:
    new = await keys.create(database, "me")
    for part in (new.secret[:12], new.secret[:-1], new.secret + "A", new.secret.upper()):
        with pytest.raises(UnknownKey):
            await keys.find(database, part)


async def test_a_revoked_key_is_unknown_and_gets_no_credits(database: Database) -> None:
    new = await keys.create(database, "me", 5000)
    revoked = await keys.revoke(database, new.key.prefix)
    assert revoked.revoked_at is not None
    with pytest.raises(UnknownKey):
        await keys.find(database, new.secret)
    with pytest.raises(UnknownKey):
        await ledger.credit(database, new.key.id, 1000)
    assert await keys.revoke(database, str(new.key.id)) == revoked  # the first time counts


async def test_keys_are_named_by_id_by_what_is_shown_and_by_the_whole_key(database: Database) -> None:
    first, second = await keys.create(database, "first"), await keys.create(database, "second")
    for new in (first, second):
        for which in (str(new.key.id), new.key.prefix, new.secret):
            assert await keys.look_up(database, which) == new.key
    for nobody in ("999", "tsd_", "9" * 30, ""):
        with pytest.raises(UnknownKey, match="no API key has the id or begins with"):
            await keys.look_up(database, nobody)


async def test_accounts_are_listed_with_their_balances_oldest_first(database: Database) -> None:
    one = await keys.create(database, "one", 5000)
    two = await keys.create(database, "two")
    await ledger.credit(database, one.key.id, 500)
    await keys.revoke(database, str(two.key.id))
    listed = await keys.accounts(database)
    assert [(account.key.name, account.balance) for account in listed] == [("one", 5500), ("two", 0)]
    assert listed[1].key.revoked_at is not None


async def test_the_first_key_is_made_once_whoever_asks(database_url: str) -> None:
    async with Database(database_url) as one, Database(database_url) as other:
        made = await asyncio.gather(
            *(keys.create_first(database, "first", 1000) for database in (one, other) for _ in range(5))
        )
        assert len([new for new in made if new]) == 1
        assert [(account.key.name, account.balance) for account in await keys.accounts(one)] == [("first", 1000)]
        await keys.revoke(one, "1")
        assert await keys.create_first(one, "first", 1000) is None


@pytest.mark.parametrize(
    ("name", "credits", "requests_per_minute"), [("", 0, None), ("x" * 101, 0, None), ("me", -1, None), ("me", 0, 0)]
)
async def test_values_out_of_range_make_no_key(
    database: Database, name: str, credits: int, requests_per_minute: int | None
) -> None:
    with pytest.raises(ValueError, match="allowed"):
        await keys.create(database, name, credits, requests_per_minute)
    assert await keys.accounts(database) == []


async def test_a_grant_is_noted(database: Database) -> None:
    new = await keys.create(database, "me", 1000)
    await ledger.credit(database, new.key.id, 500, "paid by invoice 7")
    async with database.reading() as session:
        notes = (await session.scalars(select(EntryRow.note).order_by(EntryRow.sequence))).all()
    assert notes == ["with the key", "paid by invoice 7"]
