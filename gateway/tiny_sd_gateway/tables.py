"""The tables, as migrations/ makes them; tests hold the two equal.

Times are integers: milliseconds since 1970 by the database's clock. Money is integers of milli-credits. What must never
happen (a negative balance, a generation that is charged twice, a changed entry of the ledger) the database refuses by
itself, whatever program asks for it; triggers that do so are in the migrations.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

MAX_IDEMPOTENCY_KEY = 255
"""Characters that an idempotency key may have."""


class Base(DeclarativeBase):
    """Names every constraint, so that a migration can change it."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {int: BigInteger}  # noqa: RUF012 - read once, by SQLAlchemy


def _partial_index(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    return Index(f"ix_{name}", *columns, unique=unique, sqlite_where=text(where), postgresql_where=text(where))


class KeyRow(Base):
    """An API key. Its row is the lock under which the key's ledger grows."""

    __tablename__ = "keys"

    # BIGINT would not number itself in SQLite.
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    prefix: Mapped[str] = mapped_column(String(12), index=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    """SHA-256 of the key, in hex."""
    requests_per_minute: Mapped[int | None]
    created_at: Mapped[int]
    revoked_at: Mapped[int | None]
    turn: Mapped[int] = mapped_column(server_default="0")
    """When a queued generation of this key was taken up last; keys take turns by it."""


class GenerationRow(Base):
    """A generation, from its acceptance on, for ever; its results go earlier."""

    __tablename__ = "generations"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    key_id: Mapped[int] = mapped_column(ForeignKey("keys.id"))
    api: Mapped[str] = mapped_column(String(8))
    slug: Mapped[str] = mapped_column(String(100))
    state: Mapped[str] = mapped_column(String(10))
    parameters: Mapped[dict[str, Any]] = mapped_column(JSON)
    price: Mapped[int]
    idempotency_key: Mapped[str | None] = mapped_column(String(MAX_IDEMPOTENCY_KEY))
    fingerprint: Mapped[str | None] = mapped_column(String(64))
    """What the idempotency key was used for."""
    attempt: Mapped[int] = mapped_column(server_default="0")
    """How often it was taken up. With ``owner`` it tells a worker from those before and after."""
    failures: Mapped[int] = mapped_column(server_default="0")
    """How many of the attempts count against it."""
    owner: Mapped[str | None] = mapped_column(String(200))
    """The worker that has it, or had it last."""
    lease_until: Mapped[int | None]
    """When somebody else may take it from its owner."""
    claimable_at: Mapped[int]
    created_at: Mapped[int]
    started_at: Mapped[int | None]
    finished_at: Mapped[int | None]
    results_until: Mapped[int | None]
    """How long its pictures and its idempotency key hold; None before its end, and once they are removed."""
    error_status: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(Text)
    infer_s: Mapped[float | None]

    __table_args__ = (
        UniqueConstraint("key_id", "idempotency_key"),
        UniqueConstraint("id", "key_id"),  # what the ledger refers to
        CheckConstraint("api IN ('v1', 'v2', 'openai', 'page')", name="api"),
        CheckConstraint("state IN ('QUEUED', 'PROCESSING', 'COMPLETED', 'FAILED', 'CANCELLED')", name="state"),
        CheckConstraint("state <> 'QUEUED' OR api = 'v2'", name="queue"),
        CheckConstraint("(state = 'PROCESSING') = (lease_until IS NOT NULL)", name="lease"),
        CheckConstraint("(state IN ('QUEUED', 'PROCESSING')) = (finished_at IS NULL)", name="finished"),
        CheckConstraint("(state = 'FAILED') = (error IS NOT NULL)", name="error"),
        CheckConstraint("price >= 0", name="price"),
        _partial_index("queued", "key_id", "created_at", where="state = 'QUEUED'"),
        _partial_index("leased", "lease_until", where="state = 'PROCESSING'"),
        _partial_index("kept", "results_until", where="results_until IS NOT NULL"),
    )


class PictureRow(Base):
    """A picture of a completed generation, until its results expire."""

    __tablename__ = "pictures"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    """Drawn at random: who knows it may fetch the picture."""
    generation_id: Mapped[str] = mapped_column(ForeignKey("generations.id"))
    position: Mapped[int]
    seed: Mapped[int]
    media_type: Mapped[str] = mapped_column(String(20))
    data: Mapped[bytes] = mapped_column(LargeBinary)

    __table_args__ = (UniqueConstraint("generation_id", "position"),)


class EntryRow(Base):
    """An entry of a key's ledger. Entries are added, never changed and never removed.

    ``balance`` is the sum of the key's amounts up to here, so that the last entry tells the balance, and so that the
    database can refuse a negative one. Triggers hold it to that, and a refund to what was reserved.
    """

    __tablename__ = "ledger"

    key_id: Mapped[int] = mapped_column(ForeignKey("keys.id"), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    """1, 2, 3 and so on for each key, without gaps."""
    kind: Mapped[str] = mapped_column(String(8))
    amount: Mapped[int]
    balance: Mapped[int]
    generation_id: Mapped[str | None] = mapped_column(String(32))
    at: Mapped[int]
    note: Mapped[str] = mapped_column(Text)

    __table_args__ = (
        ForeignKeyConstraint(["generation_id", "key_id"], ["generations.id", "generations.key_id"]),
        CheckConstraint("kind IN ('grant', 'reserve', 'settle', 'refund')", name="kind"),
        CheckConstraint("(kind = 'grant') = (generation_id IS NULL)", name="generation"),
        CheckConstraint("kind <> 'reserve' OR amount <= 0", name="reserve"),
        CheckConstraint("kind <> 'settle' OR amount = 0", name="settle"),
        CheckConstraint("balance >= 0", name="balance"),
        _partial_index("reserved_once", "generation_id", where="kind = 'reserve'", unique=True),
        _partial_index("closed_once", "generation_id", where="kind IN ('settle', 'refund')", unique=True),
    )


class RateWindow(Base):
    """How often something happened in a window of time, for rate limits that all replicas share."""

    __tablename__ = "rate_windows"

    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    hits: Mapped[int]
    expires_at: Mapped[int] = mapped_column(index=True)
