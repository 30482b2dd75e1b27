"""Both kinds of blob store keep the same promises."""

import hashlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from services.chassis.errors import InvalidInput, NotFound
from services.storage.blobs import (
    BlobStore,
    Intake,
    LocalBlobs,
    blob_key,
    open_blobs,
    verified,
)
from services.storage.object_blobs import ObjectBlobs

CONTENT = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
KEY = blob_key(DIGEST)


@pytest.fixture(params=["local", "object"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return LocalBlobs(tmp_path) if request.param == "local" else ObjectBlobs(MemoryStore())


async def chunks_of(content: bytes, *, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def content_of(blobs: BlobStore, key: str, *, chunk_size_bytes: int = 70_000) -> bytes:
    return b"".join([chunk async for chunk in blobs.read(key, chunk_size_bytes=chunk_size_bytes)])


def announced(content: bytes, *, digest: str = DIGEST) -> AsyncIterator[bytes]:
    return verified(chunks_of(content), digest=digest, size_bytes=len(CONTENT))


async def test_bytes_come_back_as_they_were_in_chunks_of_a_bounded_size(blobs: BlobStore) -> None:
    await blobs.write(KEY, announced(CONTENT))
    sizes = [len(chunk) async for chunk in blobs.read(KEY, chunk_size_bytes=70_000)]
    assert max(sizes) <= 70_000
    assert await content_of(blobs, KEY) == CONTENT


async def test_an_empty_blob_is_kept(blobs: BlobStore) -> None:
    await blobs.write("files/empty", chunks_of(b""))
    assert await blobs.has("files/empty")
    assert await content_of(blobs, "files/empty") == b""


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (CONTENT[:-1], r"ended after 1279999 of 1280000 bytes"),
        (CONTENT + b"x", r"more than the announced 1280000"),
        (b"x" + CONTENT[1:], r"not the announced"),
        (b"", r"ended after 0 of"),
    ],
)
async def test_bytes_that_are_not_what_was_announced_leave_nothing(
    blobs: BlobStore, tmp_path: Path, content: bytes, problem: str
) -> None:
    with pytest.raises(InvalidInput, match=problem):
        await blobs.write(KEY, announced(content))
    assert not await blobs.has(KEY)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_a_long_upload_is_refused_before_its_end() -> None:
    consumed = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal consumed
        while True:
            consumed += 1
            yield b"x" * 100

    with pytest.raises(InvalidInput, match="too much"):
        async for _ in Intake(endless(), size_bytes_max=1000, error=InvalidInput("too much")):
            pass
    assert consumed == 11


async def test_an_intake_knows_the_checksums_of_what_went_through() -> None:
    intake = Intake(
        chunks_of(CONTENT),
        size_bytes_max=len(CONTENT),
        error=InvalidInput("too much"),
        algorithms=("md5", "sha256"),
    )
    async for _ in intake:
        pass
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    assert intake.checksums() == {"md5": md5, "sha256": DIGEST}


async def test_a_second_write_replaces_the_first_and_delete_may_be_repeated(
    blobs: BlobStore,
) -> None:
    await blobs.write("files/x", chunks_of(b"one"))
    await blobs.write("files/x", chunks_of(b"two"))
    assert await content_of(blobs, "files/x") == b"two"
    await blobs.delete("files/x")
    await blobs.delete("files/x")
    assert not await blobs.has("files/x")
    with pytest.raises(NotFound):
        await content_of(blobs, "files/x")


async def test_a_local_write_is_invisible_until_its_end(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    seen: list[bool] = []

    async def watched() -> AsyncIterator[bytes]:
        async for chunk in chunks_of(CONTENT):
            seen.append(await blobs.has(KEY))
            yield chunk

    await blobs.write(KEY, watched())
    assert seen
    assert not any(seen)
    assert await blobs.has(KEY)


async def test_a_sweep_removes_unfinished_uploads_and_nothing_else(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    await blobs.write(KEY, announced(CONTENT))
    (tmp_path / "uploads" / "0123.part").write_bytes(b"half")
    assert await blobs.sweep() == 1
    assert list((tmp_path / "uploads").iterdir()) == []
    assert await content_of(blobs, KEY) == CONTENT


@pytest.mark.parametrize(
    "url", ["ftp://x/y", "/var/lib", "file://host/x", "file:///", "https://x/y", "s3://", ""]
)
def test_an_unknown_place_is_refused_with_the_places_that_work(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"file:///folder, s3://bucket/path"):
        open_blobs(url)


def test_a_bucket_that_lacks_settings_is_refused_with_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(InvalidInput, match="Account must be specified"):
        open_blobs("az://container/path")


def test_the_url_decides_between_folder_and_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    assert isinstance(open_blobs(f"file://{tmp_path}/a%20b"), LocalBlobs)
    assert (tmp_path / "a b" / "uploads").is_dir()
    for url in ("s3://bucket/path", "gs://bucket/path", "az://container/path"):
        assert isinstance(open_blobs(url), ObjectBlobs)


def test_a_bucket_without_its_extra_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.delitem(sys.modules, "services.storage.object_blobs")
    with pytest.raises(InvalidInput, match=r"pip install 'reprise\[cloud\]'"):
        open_blobs("s3://bucket/path")
