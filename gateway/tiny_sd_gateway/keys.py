"""API keys: ``tsd_`` and 43 characters from 32 random bytes.

Only a key's SHA-256 is stored. That is enough: slow hashes protect passwords, which can be guessed; nobody guesses 256
random bits. Its first twelve characters are kept to tell keys apart.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from tiny_sd_gateway import ledger
from tiny_sd_gateway.database import Database, moment, now_ms, undisturbed
from tiny_sd_gateway.faults import UnknownKey
from tiny_sd_gateway.tables import EntryRow, KeyRow

PREFIX = "tsd_"
SHOWN = 12
"""Characters of a key that are kept and shown."""
MAX_NAME = 100


@dataclass(frozen=True)
class Key:
    """An API key, as it is stored. ``prefix``: its first characters; ``requests_per_minute``: None for the usual."""

    id: int
    name: str
    prefix: str
    requests_per_minute: int | None
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True)
class NewKey:
    """A key just made. ``secret`` is what callers send; it cannot be had again."""

    key: Key
    secret: str


@dataclass(frozen=True)
class Account:
    """A key and its balance in milli-credits."""

    key: Key
    balance: int


@undisturbed
async def find(database: Database, secret: str) -> Key:
    """The key that ``secret`` is. Raises :class:`UnknownKey` for all else, and for a revoked one.

    The time that it takes tells nothing of the keys that there are: whatever is given is hashed, and looked up once.
    """
    async with database.reading() as session:
        row = await session.scalar(select(KeyRow).where(KeyRow.digest == _digest(secret)))
    if row is None or row.revoked_at is not None:
        raise UnknownKey("no such API key")
    return _key(row)


@undisturbed
async def create(database: Database, name: str, credits: int = 0, requests_per_minute: int | None = None) -> NewKey:
    """Make a key with ``credits`` milli-credits. Raises ValueError for values that are out of range."""
    if not 1 <= len(name) <= MAX_NAME:
        raise ValueError(f"name: got {len(name)} characters; allowed: 1 to {MAX_NAME}")
    if credits < 0:
        raise ValueError("credits: got a negative number; allowed: 0 or more")
    if requests_per_minute is not None and requests_per_minute < 1:
        raise ValueError(f"requests_per_minute: got {requests_per_minute}; allowed: 1 or more")
    async with database.writing() as session:
        return await _add(session, name, credits, requests_per_minute)


@undisturbed
async def create_first(database: Database, name: str, credits: int) -> NewKey | None:
    """Make a key if there is none at all, not even a revoked one; several processes that ask at once get one in all."""
    async with database.writing() as session:
        await database.lock_table(session, KeyRow)
        if await session.scalar(select(func.count()).select_from(KeyRow)):
            return None
        return await _add(session, name, credits, None)


@undisturbed
async def accounts(database: Database) -> list[Account]:
    """All keys with their balances, oldest first; the revoked ones too."""
    own = select(func.max(EntryRow.sequence)).where(EntryRow.key_id == KeyRow.id)
    newest = own.correlate(KeyRow).scalar_subquery()
    statement = (
        select(KeyRow, func.coalesce(EntryRow.balance, 0))
        .outerjoin(EntryRow, (EntryRow.key_id == KeyRow.id) & (EntryRow.sequence == newest))
        .order_by(KeyRow.id)
    )
    async with database.reading() as session:
        return [Account(_key(row), balance) for row, balance in (await session.execute(statement))]


@undisturbed
async def look_up(database: Database, which: str) -> Key:
    """The key of this id, or of these first characters as they are shown; also a revoked one.

    Raises :class:`UnknownKey`, also where several keys begin like this.
    """
    async with database.reading() as session:
        return _key(await _look_up(session, which))


@undisturbed
async def revoke(database: Database, which: str) -> Key:
    """Let nobody use the key any more; what it has queued still runs. ``which`` and errors as in :func:`look_up`."""
    async with database.writing() as session:
        row = await ledger.lock(session, (await _look_up(session, which)).id, revoked=True)
        if row.revoked_at is None:
            row.revoked_at = await now_ms(session)
        return _key(row)


async def _look_up(session: AsyncSession, which: str) -> KeyRow:
    # A whole key, which somebody may paste here, is known by its beginning too.
    same = KeyRow.id == int(which) if which.isdecimal() and len(which) < 19 else KeyRow.prefix == which[:SHOWN]
    found = (await session.scalars(select(KeyRow).where(same))).all()
    if len(found) != 1:
        several = "several API keys begin with" if found else "no API key has the id or begins with"
        raise UnknownKey(f"{several} {which[:SHOWN]!r}; see tiny-sd-gateway keys list")
    return found[0]


async def _add(session: AsyncSession, name: str, credits: int, requests_per_minute: int | None) -> NewKey:
    secret = PREFIX + secrets.token_urlsafe(32)
    now = await now_ms(session)
    row = KeyRow(
        name=name,
        prefix=secret[:SHOWN],
        digest=_digest(secret),
        requests_per_minute=requests_per_minute,
        created_at=now,
    )
    session.add(row)
    await session.flush()
    if credits:
        await ledger.append(session, row.id, ledger.Kind.GRANT, credits, at=now, note="with the key")
    return NewKey(_key(row), secret)


def _digest(secret: str) -> str:
    # Surrogates stand for bytes of a header that are no text.
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def _key(row: KeyRow) -> Key:
    return Key(
        id=row.id,
        name=row.name,
        prefix=row.prefix,
        requests_per_minute=row.requests_per_minute,
        created_at=moment(row.created_at),
        revoked_at=None if row.revoked_at is None else moment(row.revoked_at),
    )
