"""Generations as the database remembers them: accepted, under way, ended.

    submit ──> QUEUED ──claim──> PROCESSING ──complete──> COMPLETED     settled
                 ^                │  │  └─────fail──────> FAILED        refunded
    begin ───────│──────────────> │  └────────cancel────> CANCELLED     refunded
                 └─release, retry─┘

:func:`submit` puts one into the queue of v2; :func:`begin` starts one whose caller waits. Both reserve its price in the
same transaction. What workers do with them is in leases.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Self
from uuid import uuid4

from sqlalchemy import ColumnElement, func, literal, select
from sqlalchemy.ext.asyncio import AsyncSession

from tiny_sd_client.parameters import Parameters, parse
from tiny_sd_gateway import ledger
from tiny_sd_gateway.database import Database, moment, now, now_ms, undisturbed
from tiny_sd_gateway.faults import IdempotencyConflict, UnknownGeneration
from tiny_sd_gateway.tables import MAX_IDEMPOTENCY_KEY, GenerationRow, PictureRow


class State(StrEnum):
    """How far a generation is."""

    QUEUED = "QUEUED"
    PROCESSING = "PROCESSING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        """Whether it stays so."""
        return self not in (State.QUEUED, State.PROCESSING)


class Api(StrEnum):
    """The dialect in which it was asked for. Only v2 has a queue; who asks in another one waits for the answer."""

    V1 = "v1"
    V2 = "v2"
    OPENAI = "openai"
    PAGE = "page"


@dataclass(frozen=True)
class Idempotency:
    """The caller's name for a request, and a fingerprint of what was requested by that name."""

    key: str
    fingerprint: str

    def __post_init__(self) -> None:
        if not 1 <= len(self.key) <= MAX_IDEMPOTENCY_KEY:
            raise ValueError(f"Idempotency-Key: got {len(self.key)} characters; allowed: 1 to {MAX_IDEMPOTENCY_KEY}")

    @classmethod
    def of(cls, key: str, *parts: str | bytes | Mapping[str, object]) -> Self:
        """With the fingerprint of ``parts``: what the request is, and was given, before anything random is added.

        The order within a mapping does not count; its values are JSON. Raises ValueError for a key that is too long.
        """
        digest = hashlib.sha256()
        for part in parts:
            text = json.dumps(part, sort_keys=True) if isinstance(part, Mapping) else part
            data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
            digest.update(len(data).to_bytes(8, "big"))
            digest.update(data)
        return cls(key, digest.hexdigest())


@dataclass(frozen=True)
class Order:
    """What a key asks for, for ``price`` milli-credits.

    ``parameters`` are resolved, so that every attempt makes the same files. Raises ValueError for others.
    """

    key_id: int
    api: Api
    slug: str
    parameters: Parameters
    price: int
    idempotency: Idempotency | None = None

    def __post_init__(self) -> None:
        if self.parameters.seed < 0:
            raise ValueError("parameters: the seed is not drawn yet; call resolved()")


@dataclass(frozen=True)
class Generation:
    """A generation.

    ``attempt``: how often it was taken up. ``error_status`` and ``error``: why it FAILED, as an HTTP status and a
    message. ``expires_at``: how long its pictures and its idempotency key hold; ``expired``: they do not any more.
    """

    id: str
    key_id: int
    api: Api
    slug: str
    state: State
    parameters: Parameters
    price: int
    attempt: int
    error_status: int | None
    error: str | None
    infer_s: float | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    expired: bool


@dataclass(frozen=True)
class Lease:
    """A worker's right to a generation, for as long as it renews it and nobody cancels."""

    generation_id: str
    owner: str
    attempt: int

    @property
    def job_id(self) -> str:
        """What Triton calls this attempt."""
        return f"{self.generation_id}-{self.attempt}"


@dataclass(frozen=True)
class Claim:
    """A generation to work on."""

    generation: Generation
    lease: Lease


@dataclass(frozen=True)
class NewPicture:
    """A picture file to be stored."""

    seed: int
    media_type: str
    data: bytes


@dataclass(frozen=True)
class Picture:
    """A stored picture file; ``id`` cannot be guessed."""

    id: str
    generation_id: str
    position: int
    seed: int
    media_type: str
    data: bytes


@dataclass(frozen=True)
class Depth:
    """Generations in the queue and under way, of all gateways on the database."""

    queued: int
    processing: int


@undisturbed
async def submit(database: Database, order: Order) -> Generation:
    """Accept a generation into the queue, and reserve its price.

    With an idempotency key that this key has used for the same before, it is the earlier generation, however it ended.
    Raises :class:`UnknownKey`, :class:`InsufficientCredits` and :class:`IdempotencyConflict`.
    """
    if order.api is not Api.V2:
        raise ValueError(f"api: got {order.api}; allowed: {Api.V2}")
    async with database.writing() as session:
        await ledger.lock(session, order.key_id)
        at = await now_ms(session)
        row = await _earlier(session, order, at) or await _accept(session, order, at)
    return generation(row, at)


@undisturbed
async def begin(database: Database, order: Order, owner: str, lease_s: float) -> Claim | Generation:
    """Accept a generation whose caller waits, reserve its price, and lease it to ``owner`` at once.

    With an idempotency key that this key has used for the same before, and that did not end without pictures, it is the
    earlier generation. Raises :class:`UnknownKey`, :class:`InsufficientCredits` and :class:`IdempotencyConflict`.
    """
    if order.api is Api.V2:
        raise ValueError(f"api: got {order.api}; allowed: others")
    async with database.writing() as session:
        await ledger.lock(session, order.key_id)
        at = await now_ms(session)
        earlier = await _earlier(session, order, at)
        if earlier is not None and State(earlier.state) in (State.FAILED, State.CANCELLED):
            # Nothing was charged, and whoever asks again wants pictures.
            await _forget(session, earlier)
            earlier = None
        row = earlier or await _accept(session, order, at, owner=owner, lease_s=lease_s)
    known = generation(row, at)
    return known if earlier else Claim(known, Lease(row.id, owner, row.attempt))


@undisturbed
async def find(database: Database, key_id: int, generation_id: str) -> Generation:
    """The key's generation. Raises :class:`UnknownGeneration`, also for one of another key."""
    statement = select(GenerationRow, now()).where(GenerationRow.id == generation_id, GenerationRow.key_id == key_id)
    async with database.reading() as session:
        found = (await session.execute(statement)).one_or_none()
    if found is None:
        raise UnknownGeneration(generation_id)
    return generation(*found)


@undisturbed
async def pictures_of(database: Database, key_id: int, generation_id: str) -> tuple[Picture, ...]:
    """The pictures of the key's generation, in order; none before it is completed and after they expired."""
    wanted = (PictureRow.generation_id == generation_id, GenerationRow.key_id == key_id)
    async with database.reading() as session:
        return await _pictures(session, *wanted)


@undisturbed
async def picture(database: Database, picture_id: str) -> Picture | None:
    """The picture of this id, whosever it is; None if there is none or it expired."""
    async with database.reading() as session:
        return next(iter(await _pictures(session, PictureRow.id == picture_id)), None)


@undisturbed
async def depth(database: Database) -> Depth:
    """How many generations wait and run."""
    count = select(func.count()).select_from(GenerationRow)
    queued = count.where(is_in(State.QUEUED)).scalar_subquery()
    processing = count.where(is_in(State.PROCESSING)).scalar_subquery()
    async with database.reading() as session:
        return Depth(*(await session.execute(select(queued, processing))).one())


def is_in(state: State) -> ColumnElement[bool]:
    """A condition that the indexes of the queue and of leases serve: those know the state as a word, not as a value."""
    return GenerationRow.state == literal(state.value, literal_execute=True)


def generation(row: GenerationRow, at: int) -> Generation:
    """What a row says at the database's time ``at``."""
    ended = State(row.state).ended
    return Generation(
        id=row.id,
        key_id=row.key_id,
        api=Api(row.api),
        slug=row.slug,
        state=State(row.state),
        parameters=parse(row.parameters, sizes=None),
        price=row.price,
        attempt=row.attempt,
        error_status=row.error_status,
        error=row.error,
        infer_s=row.infer_s,
        created_at=moment(row.created_at),
        started_at=None if row.started_at is None else moment(row.started_at),
        finished_at=None if row.finished_at is None else moment(row.finished_at),
        expires_at=None if row.results_until is None else moment(row.results_until),
        expired=ended and (row.results_until is None or row.results_until <= at),
    )


async def _earlier(session: AsyncSession, order: Order, at: int) -> GenerationRow | None:
    """What the order's idempotency key stands for. The lock on the key's row keeps others from taking it meanwhile."""
    if order.idempotency is None:
        return None
    used = (GenerationRow.key_id == order.key_id, GenerationRow.idempotency_key == order.idempotency.key)
    row = await session.scalar(select(GenerationRow).where(*used))
    if row is None:
        return None
    if row.results_until is not None and row.results_until <= at:
        await _forget(session, row)
        return None
    if row.fingerprint != order.idempotency.fingerprint:
        raise IdempotencyConflict(order.idempotency.key)
    return row


async def _forget(session: AsyncSession, row: GenerationRow) -> None:
    """Give the idempotency key of an ended generation free."""
    row.idempotency_key = row.fingerprint = None
    await session.flush()


async def _accept(
    session: AsyncSession, order: Order, at: int, *, owner: str | None = None, lease_s: float = 0
) -> GenerationRow:
    """Write the order down and reserve its price. It is queued, or taken up at once by its ``owner``."""
    row = GenerationRow(
        id=uuid4().hex,
        key_id=order.key_id,
        api=order.api,
        slug=order.slug,
        state=State.QUEUED,
        parameters=order.parameters.model_dump(mode="json"),
        price=order.price,
        idempotency_key=order.idempotency.key if order.idempotency else None,
        fingerprint=order.idempotency.fingerprint if order.idempotency else None,
        attempt=0,
        failures=0,
        created_at=at,
        claimable_at=at,
    )
    if owner is not None:
        take_up(row, owner, at, lease_s)
    session.add(row)
    await session.flush()
    await ledger.append(session, row.key_id, ledger.Kind.RESERVE, -row.price, at=at, generation_id=row.id)
    return row


def take_up(row: GenerationRow, owner: str, at: int, lease_s: float) -> None:
    """Make the generation ``owner``'s for ``lease_s`` seconds."""
    row.state = State.PROCESSING
    row.owner = owner
    row.attempt += 1
    row.started_at = at
    row.lease_until = at + round(lease_s * 1000)


async def _pictures(session: AsyncSession, *wanted: ColumnElement[bool]) -> tuple[Picture, ...]:
    statement = (
        select(PictureRow)
        .join(GenerationRow, GenerationRow.id == PictureRow.generation_id)
        .where(GenerationRow.results_until > now(), *wanted)
        .order_by(PictureRow.position)
    )
    return tuple(
        Picture(row.id, row.generation_id, row.position, row.seed, row.media_type, row.data)
        for row in await session.scalars(statement)
    )
