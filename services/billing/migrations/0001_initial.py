"""The ledger: entries and their postings, which the database itself refuses to change."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_IMMUTABLE = ("ledger_entries", "ledger_postings")


def upgrade() -> None:
    op.create_table(
        "ledger_entries",
        # In commit order and without gaps.
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("operation_id", sa.Text, nullable=False),
        sa.Column("account_id", sa.Text, nullable=False),
        sa.Column("is_settlement", sa.Boolean, nullable=False),
        sa.Column("hardware", sa.Text),
        sa.Column("price_micros_per_second", sa.BigInteger, nullable=False),
        sa.Column("run_ms", sa.BigInteger, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("created_at_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("sequence"),
        # Each credit once, one hold for a prediction, and at most one capture or release of it.
        sa.UniqueConstraint("operation_id", "is_settlement"),
        sa.CheckConstraint("kind IN ('credit', 'hold', 'capture', 'release')"),
    )
    op.create_index("ledger_entries_by_account", "ledger_entries", ["account_id", "sequence"])
    op.create_table(
        "ledger_postings",
        sa.Column("entry_sequence", sa.BigInteger, sa.ForeignKey("ledger_entries.sequence")),
        sa.Column("ledger_account", sa.Text),
        sa.Column("amount_micros", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("entry_sequence", "ledger_account"),
        sa.CheckConstraint("amount_micros <> 0"),
        sqlite_with_rowid=False,
    )
    for table in _IMMUTABLE:
        _forbid_changes(table)


def _forbid_changes(table: str) -> None:
    message = f"{table} is append-only"
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION {table}_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{message}'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_refuse()"
    )
