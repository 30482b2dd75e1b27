"""Models, versions, possession of blobs, files, and ids of counted events.

Times are microseconds since 1970 in UTC.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _create_models()
    _create_versions()
    op.create_table(
        "blob_uploads",
        sa.Column("account_id", sa.String(64), primary_key=True),
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    _create_files()
    op.create_table(
        "counted_events",
        sa.Column("event_id", sa.String(255), primary_key=True),
        sa.Column("counted_at", sa.BigInteger, nullable=False, index=True),
    )


def _create_models() -> None:
    op.create_table(
        "models",
        sa.Column("owner", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        # public or private.
        sa.Column("visibility", sa.String(16), nullable=False),
        sa.Column("hardware", sa.String(64), nullable=False),
        sa.Column("description", sa.Text),
        sa.Column("github_url", sa.Text),
        sa.Column("paper_url", sa.Text),
        sa.Column("license_url", sa.Text),
        sa.Column("cover_image_url", sa.Text),
        sa.Column("run_count", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("latest_version_id", sa.String(64)),
        # 0 before the first version, so that such models sort as the oldest.
        sa.Column("latest_version_created_at", sa.BigInteger, nullable=False, server_default="0"),
        # A repeated CreateModel is known by the request that made the model.
        sa.Column("request_id", sa.String(255), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_index(
        "models_by_latest_version", "models", ["latest_version_created_at", "owner", "name"]
    )
    op.create_index("models_by_creation", "models", ["created_at", "owner", "name"])


def _create_versions() -> None:
    op.create_table(
        "versions",
        sa.Column("owner", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("version_id", sa.String(64), primary_key=True),
        sa.Column("kind", sa.Integer, nullable=False),
        # The canonical file list as JSON.
        sa.Column("files", sa.Text, nullable=False),
        sa.Column("openapi_schema", sa.Text, nullable=False),
        sa.Column("runtime_version", sa.String(255), nullable=False),
        sa.Column("is_iterator", sa.Boolean, nullable=False),
        sa.Column("has_file_output", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["owner", "name"], ["models.owner", "models.name"]),
    )
    op.create_index("versions_by_id", "versions", ["version_id"])
    op.create_index("versions_by_creation", "versions", ["owner", "name", "created_at"])


def _create_files() -> None:
    op.create_table(
        "files",
        sa.Column("file_id", sa.String(64), primary_key=True),
        sa.Column("account_id", sa.String(64), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("content_type", sa.String(255), nullable=False),
        sa.Column("metadata", sa.Text, nullable=False),
        # False until all bytes are stored: the row outlives the bytes on both sides.
        sa.Column("is_ready", sa.Boolean, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("md5", sa.String(32), nullable=False, server_default=""),
        sa.Column("sha256", sa.String(64), nullable=False, server_default=""),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
    )
    op.create_index("files_by_account", "files", ["account_id", "created_at", "file_id"])
    op.create_index("files_by_expiry", "files", ["expires_at"])
