"""The tables of bytes: accounts' files, and who uploaded which blob."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from reprise.storage.v1 import file_pb2
from sqlalchemy import BigInteger, Boolean, Connection, Row, Text, column, table

from services.chassis.db import Database
from services.chassis.paging import Order, Page, read_page

# Bounds the parameters of one statement.
DIGESTS_PER_QUERY = 500

FILES = table(
    "files",
    *(column(name, Text) for name in ("file_id", "account_id", "name", "content_type", "metadata")),
    column("is_ready", Boolean),
    column("size_bytes", BigInteger),
    *(column(name, Text) for name in ("md5", "sha256")),
    column("created_at", BigInteger),
    column("expires_at", BigInteger),
)
BLOB_UPLOADS = table(
    "blob_uploads",
    *(column(name, Text) for name in ("account_id", "digest")),
    *(column(name, BigInteger) for name in ("size_bytes", "created_at")),
)
_FILE_ORDER = Order(columns=(FILES.c.created_at, FILES.c.file_id), label="files")


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """What is known of a file once all its bytes are stored."""

    size_bytes: int
    md5: str
    sha256: str


class FileStore:
    """Queries on files; a row is there before its bytes and goes after them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def reserve(
        self,
        file_id: str,
        header: file_pb2.FileHeader,
        *,
        account_id: str,
        now: int,
        expires_at: int,
    ) -> None:
        """Inserts a file whose bytes have yet to come; nobody sees it before."""
        values = {
            "file_id": file_id,
            "account_id": account_id,
            "name": header.name,
            "content_type": header.content_type,
            "metadata": header.metadata.text,
            "is_ready": False,
            "created_at": now,
            "expires_at": expires_at,
        }

        def work(connection: Connection) -> None:
            connection.execute(sa.insert(FILES).values(values))

        await self._database.write(work)

    async def complete(self, file_id: str, stored: StoredBytes) -> Row[Any]:
        """Makes the file visible."""
        values = {
            "is_ready": True,
            "size_bytes": stored.size_bytes,
            "md5": stored.md5,
            "sha256": stored.sha256,
        }

        def work(connection: Connection) -> Row[Any]:
            is_file = FILES.c.file_id == file_id
            connection.execute(sa.update(FILES).where(is_file).values(values))
            return connection.execute(sa.select(FILES).where(is_file)).one()

        return await self._database.write(work)

    async def find(self, file_id: str, *, account_id: str, now: int) -> Row[Any] | None:
        """The account's file, unless it has expired."""
        statement = sa.select(FILES).where(
            FILES.c.file_id == file_id, *_is_visible(account_id=account_id, now=now)
        )

        def work(connection: Connection) -> Row[Any] | None:
            return connection.execute(statement).first()

        return await self._database.read(work)

    async def list_page(
        self, *, account_id: str, now: int, page_token: str, page_size: int
    ) -> Page:
        """The account's files, newest first."""
        statement = sa.select(FILES).where(*_is_visible(account_id=account_id, now=now))

        def work(connection: Connection) -> Page:
            return read_page(
                connection,
                statement,
                order=_FILE_ORDER,
                page_token=page_token,
                page_size=page_size,
            )

        return await self._database.read(work)

    async def expire(self, file_id: str, *, now: int) -> None:
        """Ends the file's life now; the next sweep removes what is left of it."""
        statement = (
            sa.update(FILES)
            .where(FILES.c.file_id == file_id)
            .values(is_ready=False, expires_at=now)
        )

        def work(connection: Connection) -> None:
            connection.execute(statement)

        await self._database.write(work)

    async def list_expired(self, *, now: int, limit: int) -> Sequence[str]:
        """Ids of files whose time is over, oldest first."""
        statement = (
            sa.select(FILES.c.file_id)
            .where(FILES.c.expires_at <= now)
            .order_by(FILES.c.expires_at)
            .limit(limit)
        )

        def work(connection: Connection) -> Sequence[str]:
            return list(connection.execute(statement).scalars())

        return await self._database.read(work)

    async def remove(self, file_ids: Sequence[str]) -> None:
        """Forgets files whose bytes are gone."""
        statement = sa.delete(FILES).where(FILES.c.file_id.in_(file_ids))

        def work(connection: Connection) -> None:
            connection.execute(statement)

        await self._database.write(work)


class BlobUploads:
    """Queries on who uploaded which blob: only an uploader may use it in a version."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, digest: str, *, account_id: str, size_bytes: int, now: int) -> None:
        """Remembers that this account has the bytes; harmless when repeated."""
        is_upload = (BLOB_UPLOADS.c.account_id == account_id) & (BLOB_UPLOADS.c.digest == digest)
        values = {
            "account_id": account_id,
            "digest": digest,
            "size_bytes": size_bytes,
            "created_at": now,
        }

        def work(connection: Connection) -> None:
            if connection.execute(sa.select(BLOB_UPLOADS).where(is_upload)).first() is None:
                connection.execute(sa.insert(BLOB_UPLOADS).values(values))

        await self._database.write(work)

    async def sizes(self, digests: Sequence[str], *, account_id: str) -> dict[str, int]:
        """Sizes of those blobs that this account uploaded."""

        def work(connection: Connection) -> dict[str, int]:
            found: dict[str, int] = {}
            for start in range(0, len(digests), DIGESTS_PER_QUERY):
                asked = digests[start : start + DIGESTS_PER_QUERY]
                statement = sa.select(BLOB_UPLOADS.c.digest, BLOB_UPLOADS.c.size_bytes).where(
                    BLOB_UPLOADS.c.account_id == account_id, BLOB_UPLOADS.c.digest.in_(asked)
                )
                rows = connection.execute(statement)
                found.update({row.digest: row.size_bytes for row in rows})
            return found

        return await self._database.read(work)


def _is_visible(*, account_id: str, now: int) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        FILES.c.account_id == account_id,
        FILES.c.is_ready.is_(True),
        FILES.c.expires_at > now,
    )
