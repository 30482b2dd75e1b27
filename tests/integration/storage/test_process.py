"""`python -m services.storage` as a process: killed in the middle, and listening to the bus."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from reprise.scheduler.v1 import events_pb2
from reprise.storage.v1 import artifact_pb2, file_pb2, model_pb2

from services.chassis.bus import Bus
from services.chassis.channels import Peer, open_channel
from services.chassis.settings import ServiceSettings
from tests.integration.storage.service import CHUNK_BYTES, MESH_KEY, WAIT_S, Client
from tests.servers import free_port, nats_server, wait_for_port

ROOT = Path(__file__).parents[3]
CONTENT = os.urandom(40 * CHUNK_BYTES)


@dataclass(slots=True)
class StorageProcess:
    """A storage process on its own folder, which a test may kill and start again."""

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    channel: grpc.aio.Channel | None = None

    def spawn(self) -> None:
        environment = {
            "REPRISE_STORAGE_LISTEN": f"127.0.0.1:{self.port}",
            "REPRISE_STORAGE_MESH_KEY": MESH_KEY,
            "REPRISE_STORAGE_DATABASE_URL": f"sqlite:///{self.folder / 'storage.db'}",
            "REPRISE_STORAGE_BLOB_URL": f"file://{self.folder / 'blobs'}",
            "REPRISE_STORAGE_INFERENCE_TARGET": "127.0.0.1:1",
        }
        with (self.folder / "storage.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.storage"],
                cwd=ROOT,
                env=os.environ | environment | self.settings,
                stderr=log,
            )

    async def start(self) -> Client:
        self.spawn()
        await wait_for_port(self.port, timeout_s=30)
        if self.channel is None:
            self.channel = open_channel(f"127.0.0.1:{self.port}")
        return Client(Peer(self.channel, MESH_KEY), "alice")

    async def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            await asyncio.to_thread(self.process.wait)
            self.process = None

    async def terminate(self) -> int:
        assert self.process is not None
        self.process.terminate()
        code = await asyncio.to_thread(self.process.wait)
        self.process = None
        return code

    def stored_paths(self) -> list[Path]:
        return [path for path in (self.folder / "blobs").rglob("*") if path.is_file()]

    async def close(self) -> None:
        if self.channel is not None:
            await self.channel.close()
        await self.kill()


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[StorageProcess]:
    process = StorageProcess(tmp_path)
    try:
        yield process
    finally:
        await process.close()


async def half_upload(process: StorageProcess, client: Client, kind: str) -> Any:
    """An upload that has reached the disk and goes on."""
    metadata = client.peer.metadata("alice")
    if kind == "blob":
        call = client.artifacts.UploadBlob(metadata=metadata)
        header = artifact_pb2.BlobHeader(digest="a" * 64, size_bytes=len(CONTENT))
        await call.write(artifact_pb2.UploadBlobRequest(header=header))
        await call.write(artifact_pb2.UploadBlobRequest(chunk=CONTENT[: 20 * CHUNK_BYTES]))
    else:
        call = client.files.CreateFile(metadata=metadata)
        await call.write(file_pb2.CreateFileRequest(header=file_pb2.FileHeader(name="a")))
        await call.write(file_pb2.CreateFileRequest(chunk=CONTENT[: 20 * CHUNK_BYTES]))
    async with asyncio.timeout(WAIT_S):
        while not any(path.stat().st_size for path in process.stored_paths()):
            await asyncio.sleep(0.01)
    return call


@pytest.mark.parametrize("kind", ["blob", "file"])
async def test_a_kill_in_the_middle_of_an_upload_leaves_nothing_and_the_next_one_works(
    process: StorageProcess, kind: str
) -> None:
    client = await process.start()
    call = await half_upload(process, client, kind)
    await process.kill()
    call.cancel()
    assert [path.suffix for path in process.stored_paths()] == [".part"]
    client = await process.start()
    assert process.stored_paths() == []
    assert (
        list((await client.call(client.files.ListFiles, file_pb2.ListFilesRequest())).files) == []
    )
    digest = await client.upload_blob(CONTENT)
    file = await client.create_file(CONTENT)
    await process.kill()
    client = await process.start()
    assert await client.missing(digest) == []
    request = artifact_pb2.DownloadBlobRequest(digest=digest)
    answers = client.stream(client.artifacts.DownloadBlob, request)
    assert b"".join([answer.chunk async for answer in answers]) == CONTENT
    assert b"".join(body.data for body in await client.download(file.id)) == CONTENT
    assert await process.terminate() == 0


async def test_completed_predictions_on_the_bus_are_counted_once_over_restarts(
    process: StorageProcess, tmp_path: Path
) -> None:
    async with nats_server(tmp_path / "nats") as nats:
        process.settings["REPRISE_STORAGE_NATS_URL"] = nats.url
        client = await process.start()
        request = model_pb2.CreateModelRequest(owner="alice", name="hello")
        await client.call(client.models.CreateModel, request)
        bus = await Bus.connect(ServiceSettings(mesh_key=MESH_KEY, nats_url=nats.url), "test")
        await bus.publish(completed("e1", count=3))
        await wait_for_run_count(client, 3)
        await process.kill()
        await bus.publish(completed("e2", count=2))
        client = await process.start()
        await wait_for_run_count(client, 5)
        await bus.close()


async def test_an_unknown_blob_url_ends_the_start_with_the_places_that_work(
    process: StorageProcess,
) -> None:
    process.settings["REPRISE_STORAGE_BLOB_URL"] = "ftp://host/blobs"
    process.spawn()
    assert process.process is not None
    assert await asyncio.to_thread(process.process.wait, WAIT_S) == 1
    assert "s3://bucket/path" in (process.folder / "storage.log").read_text()


def completed(event_id: str, *, count: int) -> events_pb2.PredictionsCompleted:
    runs = [events_pb2.CompletedPrediction(model="alice/hello") for _ in range(count)]
    return events_pb2.PredictionsCompleted(event_id=event_id, predictions=runs)


async def wait_for_run_count(client: Client, count: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while (found := (await client.get_model("alice/hello")).run_count) < count:
            await asyncio.sleep(0.02)
    assert found == count
