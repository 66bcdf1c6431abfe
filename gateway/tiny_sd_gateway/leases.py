"""What workers do with generations: take them up, show that they are alive, and end them.

A lease says whose a generation is. Its owner renews it; when it runs out, :func:`sweep` gives the generation to the
next one. Each time it is taken up its ``attempt`` grows, and what an earlier owner still does raises
:class:`LeaseLost`: a generation ends once, even if it is computed twice.

Each function is one transaction. After :class:`DatabaseUnavailable`, which may leave it open whether a transaction
happened, all of them may be called again.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from tiny_sd_gateway import ledger
from tiny_sd_gateway.database import Database, now, now_ms, undisturbed
from tiny_sd_gateway.faults import LeaseLost, UnknownGeneration
from tiny_sd_gateway.generations import Api, Claim, Generation, Lease, NewPicture, State, generation, is_in, take_up
from tiny_sd_gateway.tables import GenerationRow, KeyRow, PictureRow, RateWindow

_BATCH = 100
"""Generations whose pictures a sweep removes in one transaction."""
_GONE = "the gateway that worked on it stopped before it was finished"


@dataclass(frozen=True)
class _Failure:
    """What the caller of a failed generation is told, as HTTP has it."""

    status: int
    message: str


@dataclass(frozen=True)
class Swept:
    """What a sweep found: generations given back to the queue, given up, and relieved of their results."""

    requeued: int
    failed: int
    expired: int


@undisturbed
async def claim(database: Database, owner: str, lease_s: float) -> Claim | None:
    """Take up the next generation of the queue for ``lease_s`` seconds; None if there is none.

    Keys take turns: the next generation is the oldest of the key that has waited for its turn longest.
    """
    async with database.writing() as session:
        found = await _next(session)
        if found is None:
            return None
        row, at = found
        take_up(row, owner, at, lease_s)
        await session.execute(update(KeyRow).where(KeyRow.id == row.key_id).values(turn=at))
    # After the transaction: what no reader understands must not stand before the queue for ever.
    return Claim(generation(row, at), Lease(row.id, owner, row.attempt))


@undisturbed
async def heartbeat(database: Database, lease: Lease, lease_s: float) -> None:
    """Hold the lease for ``lease_s`` seconds from now. Raises :class:`LeaseLost`."""
    async with database.writing() as session:
        row = await _leased(session, lease)
        if row.state != State.PROCESSING:
            raise LeaseLost(lease.generation_id)
        row.lease_until = await now_ms(session) + round(lease_s * 1000)


@undisturbed
async def complete(
    database: Database, lease: Lease, pictures: Sequence[NewPicture], infer_s: float, ttl_s: float
) -> Generation:
    """End the generation with ``pictures``, which are kept for ``ttl_s`` seconds, and settle its price.

    infer_s: seconds that the server took. Raises :class:`LeaseLost`.
    """
    async with database.writing() as session:
        row = await _leased(session, lease)
        at = await now_ms(session)
        if not _happened(row, State.COMPLETED):
            row.infer_s = infer_s
            session.add_all(
                PictureRow(
                    id=secrets.token_urlsafe(24),
                    generation_id=row.id,
                    position=position,
                    seed=new.seed,
                    media_type=new.media_type,
                    data=new.data,
                )
                for position, new in enumerate(pictures)
            )
            await _end(session, row, State.COMPLETED, at, ttl_s)
    return generation(row, at)


@undisturbed
async def fail(database: Database, lease: Lease, status: int, message: str, ttl_s: float) -> Generation:
    """End the generation without pictures and refund its price.

    status, message: what its caller is told, as HTTP has it. Raises :class:`LeaseLost`.
    """
    async with database.writing() as session:
        row = await _leased(session, lease)
        at = await now_ms(session)
        if not _happened(row, State.FAILED):
            await _end_failed(session, row, _Failure(status, message), at, ttl_s)
    return generation(row, at)


@undisturbed
async def release(database: Database, lease: Lease, delay_s: float = 0.0) -> None:
    """Put the generation back into the queue, to be taken up after ``delay_s`` seconds: it was not its turn yet.

    Raises :class:`LeaseLost`, and ValueError for one that never was in the queue.
    """
    async with database.writing() as session:
        row = await _leased(session, lease)
        if not _happened(row, State.QUEUED):
            _put_back(row, await now_ms(session), delay_s)


@undisturbed
async def retry(
    database: Database,
    lease: Lease,
    *,
    delay_s: float,
    status: int,
    message: str,
    max_attempts: int,
    ttl_s: float,
) -> Generation:
    """Put the generation back into the queue after an attempt that failed; after ``max_attempts`` of them, end it.

    delay_s, status, message: as for :func:`release` and :func:`fail`, which raise the same.
    """
    async with database.writing() as session:
        row = await _leased(session, lease)
        at = await now_ms(session)
        if not _happened(row, State.QUEUED, State.FAILED):
            await _count_failure(
                session,
                row,
                _Failure(status, message),
                at,
                delay_s=delay_s,
                max_attempts=max_attempts,
                ttl_s=ttl_s,
            )
    return generation(row, at)


@undisturbed
async def cancel(database: Database, key_id: int, generation_id: str, ttl_s: float) -> Generation:
    """End the key's generation for its caller, and refund its price; one that has ended stays as it is.

    Whoever works on it notices by :class:`LeaseLost`. Raises :class:`UnknownGeneration`.
    """
    own = (GenerationRow.id == generation_id, GenerationRow.key_id == key_id)
    async with database.writing() as session:
        row = await session.scalar(select(GenerationRow).where(*own).with_for_update())
        if row is None:
            raise UnknownGeneration(generation_id)
        at = await now_ms(session)
        if not State(row.state).ended:
            await _end(session, row, State.CANCELLED, at, ttl_s)
    return generation(row, at)


@undisturbed
async def sweep(database: Database, max_attempts: int, ttl_s: float) -> Swept:
    """See to generations whose lease ran out, and remove results that have expired.

    A queued generation is given to the next worker, or ends after ``max_attempts``; one whose caller waited ends: the
    caller has gone with the gateway. All gateways on a database may sweep at the same time.
    """
    outcomes = [
        await _take_back(database, generation_id, max_attempts, ttl_s) for generation_id in await _abandoned(database)
    ]
    expired = 0
    while removed := await _remove_expired(database):
        expired += removed
    await _remove_rate_windows(database)
    return Swept(outcomes.count(State.QUEUED), outcomes.count(State.FAILED), expired)


async def _next(session: AsyncSession) -> tuple[GenerationRow, int] | None:
    """The generation whose turn it is, locked, and the time."""
    due = (is_in(State.QUEUED), GenerationRow.claimable_at <= now())
    waiting = select(GenerationRow.id).where(GenerationRow.key_id == KeyRow.id, *due).exists()
    for key_id in (await session.scalars(select(KeyRow.id).where(waiting).order_by(KeyRow.turn, KeyRow.id))).all():
        oldest = (
            select(GenerationRow, now())
            .where(GenerationRow.key_id == key_id, *due)
            .order_by(GenerationRow.created_at, GenerationRow.id)
            .limit(1)
            # What another worker is taking up in this moment is passed over, not waited for.
            .with_for_update(skip_locked=True)
        )
        if found := (await session.execute(oldest)).one_or_none():
            return found[0], found[1]
    return None


async def _leased(session: AsyncSession, lease: Lease) -> GenerationRow:
    """The generation's row, locked. Raises :class:`LeaseLost` if somebody else took it up since."""
    own = (
        GenerationRow.id == lease.generation_id,
        GenerationRow.owner == lease.owner,
        GenerationRow.attempt == lease.attempt,
    )
    row = await session.scalar(select(GenerationRow).where(*own).with_for_update())
    if row is None:
        raise LeaseLost(lease.generation_id)
    return row


def _happened(row: GenerationRow, *outcomes: State) -> bool:
    """Whether what is about to be done was done before. Raises :class:`LeaseLost` if something else was."""
    if row.state == State.PROCESSING:
        return False
    if row.state not in outcomes:
        raise LeaseLost(row.id)
    return True


async def _end(session: AsyncSession, row: GenerationRow, state: State, at: int, ttl_s: float) -> None:
    """End the generation, which is locked, and close its reservation."""
    row.state = state
    row.lease_until = None
    row.finished_at = at
    row.results_until = at + round(ttl_s * 1000)
    settled = state is State.COMPLETED
    await ledger.lock(session, row.key_id, revoked=True)
    await ledger.append(
        session,
        row.key_id,
        ledger.Kind.SETTLE if settled else ledger.Kind.REFUND,
        0 if settled else row.price,
        at=at,
        generation_id=row.id,
    )


async def _end_failed(session: AsyncSession, row: GenerationRow, failure: _Failure, at: int, ttl_s: float) -> None:
    row.error_status = failure.status
    row.error = failure.message
    await _end(session, row, State.FAILED, at, ttl_s)


def _put_back(row: GenerationRow, at: int, delay_s: float) -> None:
    if row.api != Api.V2:
        raise ValueError(f"generation {row.id}: its caller waits for it; it has no place in the queue")
    row.state = State.QUEUED
    row.lease_until = None
    row.claimable_at = at + round(delay_s * 1000)


async def _count_failure(
    session: AsyncSession,
    row: GenerationRow,
    failure: _Failure,
    at: int,
    *,
    delay_s: float,
    max_attempts: int,
    ttl_s: float,
) -> None:
    row.failures += 1
    if row.failures < max_attempts:
        _put_back(row, at, delay_s)
    else:
        await _end_failed(session, row, failure, at, ttl_s)


def _out_of_lease() -> tuple[ColumnElement[bool], ...]:
    return is_in(State.PROCESSING), GenerationRow.lease_until <= now()


async def _abandoned(database: Database) -> Sequence[str]:
    async with database.reading() as session:
        return (await session.scalars(select(GenerationRow.id).where(*_out_of_lease()))).all()


async def _take_back(database: Database, generation_id: str, max_attempts: int, ttl_s: float) -> State | None:
    """End the lease of a generation and return what becomes of it; None if its owner, or another sweep, was faster."""
    late = select(GenerationRow).where(GenerationRow.id == generation_id, *_out_of_lease())
    async with database.writing() as session:
        row = await session.scalar(late.with_for_update(skip_locked=True))
        if row is None:
            return None
        at = await now_ms(session)
        if row.api == Api.V2:
            await _count_failure(
                session, row, _Failure(500, _GONE), at, delay_s=0.0, max_attempts=max_attempts, ttl_s=ttl_s
            )
        else:
            await _end_failed(session, row, _Failure(503, _GONE), at, ttl_s)
        return State(row.state)


async def _remove_expired(database: Database) -> int:
    """Remove the pictures and idempotency keys of some ended generations, and return of how many."""
    async with database.writing() as session:
        some = (
            select(GenerationRow.id)
            .where(GenerationRow.results_until <= now())
            .limit(_BATCH)
            .with_for_update(skip_locked=True)
        )
        ids = (await session.scalars(some)).all()
        await session.execute(delete(PictureRow).where(PictureRow.generation_id.in_(ids)))
        await session.execute(
            update(GenerationRow)
            .where(GenerationRow.id.in_(ids))
            .values(results_until=None, idempotency_key=None, fingerprint=None)
        )
    return len(ids)


async def _remove_rate_windows(database: Database) -> None:
    over = select(RateWindow.name).where(RateWindow.expires_at <= now()).with_for_update(skip_locked=True)
    async with database.writing() as session:
        names = (await session.scalars(over)).all()
        await session.execute(delete(RateWindow).where(RateWindow.name.in_(names)))
