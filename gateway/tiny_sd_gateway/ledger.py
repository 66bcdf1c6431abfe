"""Credits: what a key was granted, has reserved for its generations, and has left.

A generation is reserved for when it is accepted, and closed once: settled (0) when its pictures are there, or refunded.
So the balance, which is the sum of a key's entries, is what the key may still spend, at every moment.

Entries of a key are written under the lock of the key's row, one after the other.
"""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from tiny_sd_gateway.database import Database, now_ms, undisturbed
from tiny_sd_gateway.faults import InsufficientCredits, UnknownKey
from tiny_sd_gateway.tables import EntryRow, KeyRow


class Kind(StrEnum):
    """What an entry stands for."""

    GRANT = "grant"
    RESERVE = "reserve"
    SETTLE = "settle"
    REFUND = "refund"


@undisturbed
async def balance(database: Database, key_id: int) -> int:
    """What the key may spend, in milli-credits; 0 for one that does not exist."""
    async with database.reading() as session:
        return await session.scalar(_last(key_id).with_only_columns(EntryRow.balance)) or 0


@undisturbed
async def credit(database: Database, key_id: int, amount: int, note: str = "") -> int:
    """Grant ``amount`` milli-credits, or take them back if it is negative; returns the new balance.

    Raises :class:`UnknownKey`, also for a revoked one, and :class:`InsufficientCredits` for more than there is to take.
    """
    async with database.writing() as session:
        await lock(session, key_id)
        return await append(session, key_id, Kind.GRANT, amount, at=await now_ms(session), note=note)


async def lock(session: AsyncSession, key_id: int, revoked: bool = False) -> KeyRow:
    """The key's row, locked until the transaction ends; whoever appends entries holds it.

    Raises :class:`UnknownKey` if there is none, or if it is revoked, unless ``revoked``.
    """
    # FOR NO KEY UPDATE: rows that refer to the key may be written meanwhile.
    locked = (
        select(KeyRow)
        .where(KeyRow.id == key_id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    key = await session.scalar(locked)
    if key is None or (key.revoked_at is not None and not revoked):
        raise UnknownKey("no such API key")
    return key


async def append(
    session: AsyncSession,
    key_id: int,
    kind: Kind,
    amount: int,
    *,
    at: int,
    generation_id: str | None = None,
    note: str = "",
) -> int:
    """Add an entry to the ledger of a key that :func:`lock` has locked; returns the new balance.

    Raises :class:`InsufficientCredits` if that were negative.
    """
    last = await session.scalar(_last(key_id))
    sequence, left = (last.sequence, last.balance) if last else (0, 0)
    if left + amount < 0:
        raise InsufficientCredits(-amount, left)
    session.add(
        EntryRow(
            key_id=key_id,
            sequence=sequence + 1,
            kind=kind,
            amount=amount,
            balance=left + amount,
            generation_id=generation_id,
            at=at,
            note=note,
        )
    )
    await session.flush()
    return left + amount


def _last(key_id: int) -> Select[EntryRow]:
    return select(EntryRow).where(EntryRow.key_id == key_id).order_by(EntryRow.sequence.desc()).limit(1)
