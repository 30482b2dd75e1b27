"""Predictions and the chunks of their running outputs and logs."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "predictions",
        sa.Column("id", sa.String(26), primary_key=True),
        sa.Column("account_id", sa.String(255), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("version_id", sa.String(64), nullable=False),
        sa.Column("hardware", sa.String(64), nullable=False),
        sa.Column("is_iterator", sa.Boolean, nullable=False),
        sa.Column("has_file_output", sa.Boolean, nullable=False),
        sa.Column("input", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("deadline_at", sa.BigInteger),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("webhook", sa.Text),
        sa.Column("webhook_events_filter", sa.String(255), nullable=False),
        sa.Column("traceparent", sa.String(64), nullable=False),
        sa.Column("run_timeout_ms", sa.BigInteger, nullable=False),
        sa.Column("price_micros_per_second", sa.BigInteger, nullable=False),
        sa.Column("held_amount_micros", sa.BigInteger, nullable=False),
        sa.Column("status", sa.SmallInteger, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("fault_count", sa.Integer, nullable=False),
        sa.Column("worker_id", sa.String(64)),
        sa.Column("started_at", sa.BigInteger),
        sa.Column("completed_at", sa.BigInteger),
        sa.Column("output", sa.Text),
        sa.Column("logs", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("metrics", sa.Text),
        sa.Column("charged_ms", sa.BigInteger, nullable=False),
        sa.Column("release_reason", sa.String(64), nullable=False),
        sa.Column("settled_at", sa.BigInteger),
        sa.Column("ledger_entry_id", sa.String(64)),
        sa.Column("captured_amount_micros", sa.BigInteger),
    )
    op.create_index("predictions_of_account", "predictions", ["account_id", "created_at", "id"])
    is_open = sa.text("settled_at IS NULL")
    # Small for ever: rows that still run or are not settled yet.
    op.create_index(
        "predictions_unsettled",
        "predictions",
        ["created_at"],
        sqlite_where=is_open,
        postgresql_where=is_open,
    )
    op.create_table(
        "prediction_chunks",
        sa.Column("prediction_id", sa.String(26), primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True),
        sa.Column("sequence", sa.Integer, primary_key=True),
        sa.Column("logs", sa.Text, nullable=False),
        # JSON array of strings, each the JSON text of one output item.
        sa.Column("items", sa.Text, nullable=False),
    )
