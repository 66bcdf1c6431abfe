"""First tables"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Keys, generations with their pictures, the ledger, rate limits."""
    op.create_table(
        "keys",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("prefix", sa.String(length=12), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("requests_per_minute", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("turn", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_keys")),
        sa.UniqueConstraint("digest", name=op.f("uq_keys_digest")),
    )
    op.create_index(op.f("ix_keys_prefix"), "keys", ["prefix"], unique=False)

    op.create_table(
        "rate_windows",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("hits", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_rate_windows")),
    )
    op.create_index(op.f("ix_rate_windows_expires_at"), "rate_windows", ["expires_at"], unique=False)

    op.create_table(
        "generations",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("key_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("api", sa.String(length=8), nullable=False),
        sa.Column("slug", sa.String(length=100), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("price", sa.BigInteger(), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("fingerprint", sa.String(length=64), nullable=True),
        sa.Column("attempt", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("failures", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("owner", sa.String(length=200), nullable=True),
        sa.Column("lease_until", sa.BigInteger(), nullable=True),
        sa.Column("claimable_at", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.Column("results_until", sa.BigInteger(), nullable=True),
        sa.Column("error_status", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("infer_s", sa.Double(), nullable=True),
        sa.CheckConstraint("(state = 'FAILED') = (error IS NOT NULL)", name=op.f("ck_generations_error")),
        sa.CheckConstraint("(state = 'PROCESSING') = (lease_until IS NOT NULL)", name=op.f("ck_generations_lease")),
        sa.CheckConstraint(
            "(state IN ('QUEUED', 'PROCESSING')) = (finished_at IS NULL)", name=op.f("ck_generations_finished")
        ),
        sa.CheckConstraint("api IN ('v1', 'v2', 'openai', 'page')", name=op.f("ck_generations_api")),
        sa.CheckConstraint("state <> 'QUEUED' OR api = 'v2'", name=op.f("ck_generations_queue")),
        sa.CheckConstraint(
            "state IN ('QUEUED', 'PROCESSING', 'COMPLETED', 'FAILED', 'CANCELLED')", name=op.f("ck_generations_state")
        ),
        sa.CheckConstraint("price >= 0", name=op.f("ck_generations_price")),
        sa.ForeignKeyConstraint(["key_id"], ["keys.id"], name=op.f("fk_generations_key_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_generations")),
        sa.UniqueConstraint("id", "key_id", name=op.f("uq_generations_id_key_id")),
        sa.UniqueConstraint("key_id", "idempotency_key", name=op.f("uq_generations_key_id_idempotency_key")),
    )
    op.create_index(
        "ix_kept",
        "generations",
        ["results_until"],
        unique=False,
        sqlite_where=sa.text("results_until IS NOT NULL"),
        postgresql_where=sa.text("results_until IS NOT NULL"),
    )
    op.create_index(
        "ix_leased",
        "generations",
        ["lease_until"],
        unique=False,
        sqlite_where=sa.text("state = 'PROCESSING'"),
        postgresql_where=sa.text("state = 'PROCESSING'"),
    )
    op.create_index(
        "ix_queued",
        "generations",
        ["key_id", "created_at"],
        unique=False,
        sqlite_where=sa.text("state = 'QUEUED'"),
        postgresql_where=sa.text("state = 'QUEUED'"),
    )

    op.create_table(
        "ledger",
        sa.Column("key_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("balance", sa.BigInteger(), nullable=False),
        sa.Column("generation_id", sa.String(length=32), nullable=True),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.CheckConstraint("(kind = 'grant') = (generation_id IS NULL)", name=op.f("ck_ledger_generation")),
        sa.CheckConstraint("kind <> 'reserve' OR amount <= 0", name=op.f("ck_ledger_reserve")),
        sa.CheckConstraint("kind <> 'settle' OR amount = 0", name=op.f("ck_ledger_settle")),
        sa.CheckConstraint("kind IN ('grant', 'reserve', 'settle', 'refund')", name=op.f("ck_ledger_kind")),
        sa.CheckConstraint("balance >= 0", name=op.f("ck_ledger_balance")),
        sa.ForeignKeyConstraint(
            ["generation_id", "key_id"],
            ["generations.id", "generations.key_id"],
            name=op.f("fk_ledger_generation_id_key_id"),
        ),
        sa.ForeignKeyConstraint(["key_id"], ["keys.id"], name=op.f("fk_ledger_key_id")),
        sa.PrimaryKeyConstraint("key_id", "sequence", name=op.f("pk_ledger")),
    )
    op.create_index(
        "ix_closed_once",
        "ledger",
        ["generation_id"],
        unique=True,
        sqlite_where=sa.text("kind IN ('settle', 'refund')"),
        postgresql_where=sa.text("kind IN ('settle', 'refund')"),
    )
    op.create_index(
        "ix_reserved_once",
        "ledger",
        ["generation_id"],
        unique=True,
        sqlite_where=sa.text("kind = 'reserve'"),
        postgresql_where=sa.text("kind = 'reserve'"),
    )

    op.create_table(
        "pictures",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("generation_id", sa.String(length=32), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("media_type", sa.String(length=20), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["generation_id"], ["generations.id"], name=op.f("fk_pictures_generation_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pictures")),
        sa.UniqueConstraint("generation_id", "position", name=op.f("uq_pictures_generation_id_position")),
    )

    for statement in _TRIGGERS[op.get_bind().dialect.name]:
        op.execute(statement)


_ONLY_GROWS = "the ledger only grows: its entries are never changed or removed"
_ADDS_UP = "the ledger of a key is numbered without gaps, and its balance is the sum of its amounts"
_CLOSES_ONCE = "a generation is reserved for once, and then settled or refunded once, by what was reserved"

_TRIGGERS = {
    "sqlite": (
        f"""
        CREATE TRIGGER ledger_never_changes BEFORE UPDATE ON ledger
        BEGIN SELECT RAISE(ABORT, '{_ONLY_GROWS}'); END
        """,
        f"""
        CREATE TRIGGER ledger_never_shrinks BEFORE DELETE ON ledger
        BEGIN SELECT RAISE(ABORT, '{_ONLY_GROWS}'); END
        """,
        # It asks for duplicates as well, which the unique indexes refuse anyway, but for INSERT OR REPLACE: that
        # removes the entry which is in its way, and no trigger notices.
        f"""
        CREATE TRIGGER ledger_adds_up BEFORE INSERT ON ledger
        BEGIN
            SELECT RAISE(ABORT, '{_ADDS_UP}')
            WHERE NEW.sequence <> coalesce((SELECT max(sequence) FROM ledger WHERE key_id = NEW.key_id), 0) + 1
            OR NEW.balance <> NEW.amount + coalesce(
                (SELECT balance FROM ledger WHERE key_id = NEW.key_id ORDER BY sequence DESC LIMIT 1), 0
            );
            SELECT RAISE(ABORT, '{_CLOSES_ONCE}')
            WHERE NEW.kind = 'reserve' AND EXISTS (SELECT 1 FROM ledger WHERE generation_id = NEW.generation_id)
            OR NEW.kind IN ('settle', 'refund') AND (
                (SELECT group_concat(kind) FROM ledger WHERE generation_id = NEW.generation_id) IS NOT 'reserve'
                OR NEW.kind = 'refund' AND NEW.amount IS NOT
                    (SELECT -amount FROM ledger WHERE generation_id = NEW.generation_id)
            );
        END
        """,
    ),
    "postgresql": (
        f"""
        CREATE FUNCTION ledger_only_grows() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '{_ONLY_GROWS}' USING ERRCODE = 'integrity_constraint_violation';
        END $$
        """,
        """
        CREATE TRIGGER ledger_never_changes BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger
        FOR EACH STATEMENT EXECUTE FUNCTION ledger_only_grows()
        """,
        f"""
        CREATE FUNCTION ledger_adds_up() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            last ledger%ROWTYPE;
            earlier ledger%ROWTYPE;
        BEGIN
            SELECT * INTO last FROM ledger WHERE key_id = NEW.key_id ORDER BY sequence DESC LIMIT 1;
            IF NEW.sequence <> coalesce(last.sequence, 0) + 1
            OR NEW.balance <> coalesce(last.balance, 0) + NEW.amount THEN
                RAISE EXCEPTION '{_ADDS_UP}' USING ERRCODE = 'integrity_constraint_violation';
            END IF;
            IF NEW.kind IN ('settle', 'refund') THEN
                SELECT * INTO earlier FROM ledger WHERE generation_id = NEW.generation_id AND kind = 'reserve';
                IF NOT FOUND OR NEW.kind = 'refund' AND NEW.amount <> -earlier.amount THEN
                    RAISE EXCEPTION '{_CLOSES_ONCE}' USING ERRCODE = 'integrity_constraint_violation';
                END IF;
            END IF;
            RETURN NEW;
        END $$
        """,
        """
        CREATE TRIGGER ledger_adds_up BEFORE INSERT ON ledger
        FOR EACH ROW EXECUTE FUNCTION ledger_adds_up()
        """,
    ),
}
