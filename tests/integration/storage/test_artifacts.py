"""Blobs over gRPC: verified, possessed per account, stored once."""

import asyncio
import hashlib
from typing import Any

import grpc
import pytest
from reprise.storage.v1 import artifact_pb2

from services.chassis.channels import Peer
from services.chassis.errors import InvalidInput, NotFound, Unauthenticated
from tests.integration.storage.service import Client, StorageService, run_service

CONTENT = b"weights" * 50_000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


async def download(client: Client, digest: str) -> bytes:
    request = artifact_pb2.DownloadBlobRequest(digest=digest)
    answers = client.stream(client.artifacts.DownloadBlob, request)
    return b"".join([answer.chunk async for answer in answers])


async def test_an_uploaded_blob_is_no_longer_missing_and_comes_back(
    storage: StorageService,
) -> None:
    alice = storage.client("alice")
    other = "b" * 64
    assert await alice.missing(DIGEST, other) == [DIGEST, other]
    await alice.upload_blob(CONTENT)
    assert await alice.missing(DIGEST, other) == [other]
    assert await download(alice, DIGEST) == CONTENT


@pytest.mark.parametrize(
    "announced",
    [
        {"digest": "b" * 64},
        {"size_bytes": len(CONTENT) + 1},
        {"size_bytes": len(CONTENT) - 1},
    ],
    ids=["other bytes", "too short", "too long"],
)
async def test_an_upload_that_is_not_what_it_announced_leaves_nothing(
    storage: StorageService, announced: dict[str, Any]
) -> None:
    alice = storage.client("alice")
    with pytest.raises(InvalidInput, match="nothing was kept") as refused:
        await alice.upload_blob(CONTENT, **announced)
    assert refused.value.reason == "BLOB_MISMATCH"
    assert await alice.missing(DIGEST) == [DIGEST]
    assert storage.stored_paths() == []


async def test_a_blob_of_another_account_is_missing_until_its_bytes_were_sent(
    storage: StorageService,
) -> None:
    alice, bob = storage.client("alice"), storage.client("bob")
    await alice.upload_blob(CONTENT)
    assert await bob.missing(DIGEST) == [DIGEST]
    with pytest.raises(InvalidInput):
        await bob.upload_blob(b"guess", digest=DIGEST)
    assert await bob.missing(DIGEST) == [DIGEST]
    await bob.upload_blob(CONTENT)
    assert await bob.missing(DIGEST) == []
    assert len(storage.stored_paths()) == 1


async def test_concurrent_uploads_of_one_blob_all_succeed(storage: StorageService) -> None:
    clients = [storage.client(f"account{index}") for index in range(8)]
    await asyncio.gather(*(client.upload_blob(CONTENT) for client in clients))
    assert len(storage.stored_paths()) == 1
    assert await download(clients[0], DIGEST) == CONTENT


async def test_an_absent_blob_is_not_found(storage: StorageService) -> None:
    with pytest.raises(NotFound, match=DIGEST):
        await download(storage.client("alice"), DIGEST)


@pytest.mark.parametrize("digest", ["../../etc/passwd", "A" * 64, ""])
async def test_a_text_that_is_no_digest_is_refused(storage: StorageService, digest: str) -> None:
    alice = storage.client("alice")
    with pytest.raises(InvalidInput, match="64 lower-case hex"):
        await download(alice, digest)
    with pytest.raises(InvalidInput, match="64 lower-case hex"):
        await alice.missing(digest)
    with pytest.raises(InvalidInput):
        await alice.upload_blob(b"x", digest=digest or "no")


async def test_only_the_mesh_reads_blobs(storage: StorageService) -> None:
    await storage.client("alice").upload_blob(CONTENT)
    stranger = Client(Peer(storage.channel, "another key"), "alice")
    with pytest.raises(Unauthenticated):
        await download(stranger, DIGEST)


async def test_an_upload_that_stalls_is_given_up(tmp_path: Any) -> None:
    async for storage in run_service(tmp_path, upload_idle_s=0.1):
        alice = storage.client("alice")
        header = artifact_pb2.BlobHeader(digest=DIGEST, size_bytes=len(CONTENT))
        call = alice.artifacts.UploadBlob(metadata=alice.peer.metadata("alice"))
        await call.write(artifact_pb2.UploadBlobRequest(header=header))
        with pytest.raises(grpc.aio.AioRpcError, match="sent nothing for") as given_up:
            await asyncio.wait_for(call, 10)
        assert given_up.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert storage.stored_paths() == []
