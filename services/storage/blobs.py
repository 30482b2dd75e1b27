"""Bytes by key: one Protocol, with a folder of this host or a bucket behind it.

A write is all or nothing: an error that its chunks raise leaves nothing behind.
"""

import asyncio
import errno
import hashlib
import os
import re
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from services.chassis.errors import InvalidInput, NotFound, RepriseError, ResourceExhausted

OBJECT_STORE_SCHEMES = frozenset({"s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl"})

_KEY = re.compile(r"[A-Za-z0-9_-]+(?:/[A-Za-z0-9_-]+)*")


class BlobStore(Protocol):
    """Where bytes live. Keys are ours, never a caller's text."""

    async def write(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        """Stores the chunks under the key once all have come; before that nothing is visible."""
        ...

    def read(self, key: str, *, chunk_size_bytes: int) -> AsyncIterator[bytes]:
        """The bytes in order; NotFound where there are none."""
        ...

    async def has(self, key: str) -> bool:
        """Whether the key has bytes."""
        ...

    async def delete(self, key: str) -> None:
        """Removes the bytes; harmless where there are none."""
        ...

    async def sweep(self) -> int:
        """Removes what uploads of a killed process left; answers how many there were."""
        ...


class LocalBlobs:
    """Bytes in a folder of this host; for one storage process alone."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._uploads = root / "uploads"
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._uploads.mkdir(exist_ok=True)

    async def write(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        path = self._path(key)
        upload = self._uploads / f"{secrets.token_hex(16)}.part"
        try:
            with await asyncio.to_thread(upload.open, "xb") as file:
                async for chunk in chunks:
                    await asyncio.to_thread(_write_chunk, file, chunk)
                await asyncio.to_thread(_publish, file, upload, path)
        finally:
            # After the rename there is nothing to remove.
            upload.unlink(missing_ok=True)

    async def read(self, key: str, *, chunk_size_bytes: int) -> AsyncIterator[bytes]:
        try:
            file = await asyncio.to_thread(self._path(key).open, "rb")
        except FileNotFoundError:
            raise no_bytes(key) from None
        with file:
            while chunk := await asyncio.to_thread(file.read, chunk_size_bytes):
                yield chunk

    async def has(self, key: str) -> bool:
        return await asyncio.to_thread(self._path(key).exists)

    async def delete(self, key: str) -> None:
        await asyncio.to_thread(self._path(key).unlink, missing_ok=True)

    async def sweep(self) -> int:
        return await asyncio.to_thread(self._remove_uploads)

    def _remove_uploads(self) -> int:
        leftovers = list(self._uploads.glob("*.part"))
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
        return len(leftovers)

    def _path(self, key: str) -> Path:
        assert _KEY.fullmatch(key), key
        return self._root / key


@contextmanager
def _told_when_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceExhausted(
                "the server's disk is full; the operator must free space", reason="STORAGE_FULL"
            ) from error
        raise


def _write_chunk(file: BinaryIO, chunk: bytes) -> None:
    with _told_when_full():
        file.write(chunk)


def _publish(file: BinaryIO, upload: Path, path: Path) -> None:
    """Makes the upload durable, then visible: a record committed later never lacks its bytes."""
    with _told_when_full():
        file.flush()
        os.fsync(file.fileno())
        new_folders = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        upload.replace(path)
        for folder in (path.parent, *(folder.parent for folder in new_folders)):
            _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_blobs(url: str) -> BlobStore:
    """The store behind a URL: a folder (file:///...) or a bucket (s3://, gs://, az://)."""
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path not in ("", "/"):
        return LocalBlobs(Path(unquote(parts.path)))
    if parts.scheme in OBJECT_STORE_SCHEMES and parts.netloc:
        return _open_bucket(url)
    raise InvalidInput(
        f"blob_url {url!r} is no place for blobs: give file:///folder, s3://bucket/path, "
        "gs://bucket/path or az://container/path (credentials come from the cloud's usual "
        "environment variables)"
    )


def _open_bucket(url: str) -> BlobStore:
    try:
        # Imported here: a client for clouds is an extra that most installations do without.
        from services.storage.object_blobs import open_bucket
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"blob_url {url!r}: buckets need {error.name}; install it with: "
            "pip install 'reprise[cloud]'"
        ) from None
    return open_bucket(url)


class Intake:
    """Chunks on their way into a store, counted and hashed; fails early on what cannot fit."""

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        *,
        size_bytes_max: int,
        error: RepriseError,
        algorithms: Sequence[str] = ("sha256",),
    ) -> None:
        self._chunks = chunks
        self._size_bytes_max = size_bytes_max
        self._error = error
        self._hashes = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
        self.size_bytes = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._chunks:
            self.size_bytes += len(chunk)
            if self.size_bytes > self._size_bytes_max:
                raise self._error
            await asyncio.to_thread(self._hash, chunk)
            yield chunk

    def _hash(self, chunk: bytes) -> None:
        for running in self._hashes.values():
            running.update(chunk)

    def checksums(self) -> dict[str, str]:
        """Hex digest of what came so far, by algorithm."""
        return {name: running.hexdigest() for name, running in self._hashes.items()}


async def verified(
    chunks: AsyncIterator[bytes], *, digest: str, size_bytes: int
) -> AsyncIterator[bytes]:
    """The chunks; raises at their end, or before, when they are not what was announced."""
    too_long = InvalidInput(
        f"blob {digest} has more than the announced {size_bytes} bytes; nothing was kept",
        reason="BLOB_MISMATCH",
    )
    intake = Intake(chunks, size_bytes_max=size_bytes, error=too_long)
    async for chunk in intake:
        yield chunk
    if intake.size_bytes != size_bytes:
        raise InvalidInput(
            f"blob {digest} ended after {intake.size_bytes} of {size_bytes} bytes; nothing was "
            "kept, upload it again",
            reason="BLOB_MISMATCH",
        )
    found = intake.checksums()["sha256"]
    if found != digest:
        raise InvalidInput(
            f"the bytes have the SHA-256 {found}, not the announced {digest}; nothing was "
            "kept, upload them again",
            reason="BLOB_MISMATCH",
        )


def blob_key(digest: str) -> str:
    """Where a version's blob lives; folders of a manageable size."""
    return f"blobs/{digest[:2]}/{digest}"


def file_key(file_id: str) -> str:
    """Where an account's file lives."""
    return f"files/{file_id}"


def no_bytes(key: str) -> NotFound:
    return NotFound(f"no bytes are stored under {key}")
