"""Bytes in a bucket of S3, Google Cloud or Azure."""

from collections.abc import AsyncIterator
from contextlib import suppress

import obstore
from obstore.exceptions import BaseError as ObjectStoreError
from obstore.exceptions import NotFoundError
from obstore.store import ObjectStore, from_url

from services.chassis.errors import InvalidInput
from services.storage.blobs import no_bytes

# What one transfer holds in memory at most: parts under way times their size.
PART_BYTES = 8 * 1024**2
PART_COUNT_MAX = 4


def open_bucket(url: str) -> "ObjectBlobs":
    """The bucket behind an s3://, gs:// or az:// URL."""
    try:
        return ObjectBlobs(from_url(url))
    except ObjectStoreError as error:
        # Its first line says what is missing; the rest is for the library's authors.
        problem = str(error).partition("\n")[0]
        raise InvalidInput(f"blob_url {url!r} cannot be used: {problem}") from None


class ObjectBlobs:
    """Bytes in a bucket; its puts are atomic, so an upload that fails is never visible."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def write(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        failure: list[Exception] = []

        async def pass_on() -> AsyncIterator[bytes]:
            try:
                async for chunk in chunks:
                    if chunk:
                        yield chunk
            except Exception as error:
                # The store wraps what its source raises; the caller must see the cause itself.
                failure.append(error)
                raise

        try:
            await obstore.put_async(
                self._store,
                key,
                pass_on(),
                use_multipart=True,
                chunk_size=PART_BYTES,
                max_concurrency=PART_COUNT_MAX,
            )
        except Exception:
            if failure:
                raise failure[0] from None
            raise

    async def read(self, key: str, *, chunk_size_bytes: int) -> AsyncIterator[bytes]:
        try:
            answer = await obstore.get_async(self._store, key)
        except (NotFoundError, FileNotFoundError):
            raise no_bytes(key) from None
        async for part in answer.stream(min_chunk_size=chunk_size_bytes):
            content = bytes(part)
            for start in range(0, len(content), chunk_size_bytes):
                yield content[start : start + chunk_size_bytes]

    async def has(self, key: str) -> bool:
        try:
            await obstore.head_async(self._store, key)
        except (NotFoundError, FileNotFoundError):
            return False
        return True

    async def delete(self, key: str) -> None:
        with suppress(NotFoundError, FileNotFoundError):
            await obstore.delete_async(self._store, key)

    async def sweep(self) -> int:
        # Parts of an upload that never ended are invisible; the bucket's lifecycle rule removes
        # them.
        return 0
