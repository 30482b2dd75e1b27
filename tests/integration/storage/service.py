"""The storage service in this process over real stores, and clients that call it."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from reprise.inference.v1 import build_pb2, build_pb2_grpc
from reprise.storage.v1 import (
    artifact_pb2,
    artifact_pb2_grpc,
    file_pb2,
    file_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
)

from services.chassis.channels import Peer, open_channel
from services.chassis.db import Database
from services.chassis.server import MeshInterceptor
from services.storage.__main__ import MIGRATIONS, Parts, assemble
from services.storage.blobs import open_blobs
from services.storage.settings import StorageSettings
from tests.doubles.inference import FakeBuildService

MESH_KEY = "key of the test's mesh"
WAIT_S = 20
CHUNK_BYTES = 64 * 1024


class GatedBuildService(FakeBuildService):
    """A build service whose builds wait for the test after their first step."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.given_up = asyncio.Event()

    async def BuildVersion(
        self, request: build_pb2.BuildVersionRequest, context: Any
    ) -> AsyncIterator[build_pb2.BuildVersionResponse]:
        try:
            async for answer in super().BuildVersion(request, context):
                yield answer
                await self.gate.wait()
        except asyncio.CancelledError:
            self.given_up.set()
            raise


@dataclass(slots=True)
class TurnedClock:
    """A clock that only the test moves."""

    now: int = 1_700_000_000_000_000

    def __call__(self) -> int:
        # No two events at one time: lists have one order.
        self.now += 1
        return self.now

    def pass_s(self, seconds: float) -> None:
        self.now += int(seconds * 1_000_000)


@dataclass(frozen=True, slots=True)
class Client:
    """One account's view of the service."""

    peer: Peer
    account_id: str
    is_operator: bool = False

    async def call(self, method: Any, request: Any, *, request_id: str = "") -> Any:
        return await self.peer.call(
            method,
            request,
            timeout_s=WAIT_S,
            account_id=self.account_id,
            is_operator=self.is_operator,
            request_id=request_id,
        )

    def stream(self, method: Any, request: Any) -> AsyncIterator[Any]:
        return self.peer.stream(
            method,
            request,
            timeout_s=WAIT_S,
            account_id=self.account_id,
            is_operator=self.is_operator,
        )

    @property
    def models(self) -> Any:
        return model_pb2_grpc.ModelServiceStub(self.peer.channel)

    @property
    def files(self) -> Any:
        return file_pb2_grpc.FileServiceStub(self.peer.channel)

    @property
    def artifacts(self) -> Any:
        return artifact_pb2_grpc.ArtifactServiceStub(self.peer.channel)

    async def upload_blob(
        self, content: bytes, *, digest: str = "", size_bytes: int | None = None
    ) -> str:
        digest = digest or hashlib.sha256(content).hexdigest()
        header = artifact_pb2.BlobHeader(
            digest=digest, size_bytes=len(content) if size_bytes is None else size_bytes
        )
        requests = [artifact_pb2.UploadBlobRequest(header=header)]
        requests += [artifact_pb2.UploadBlobRequest(chunk=part) for part in parts_of(content)]
        await self.call(self.artifacts.UploadBlob, each(requests))
        return digest

    async def missing(self, *digests: str) -> list[str]:
        request = artifact_pb2.ListMissingBlobsRequest(digests=digests)
        answer = await self.call(self.artifacts.ListMissingBlobs, request)
        return list(answer.digests)

    async def project(self, text: str = "print('hello')") -> list[model_pb2.VersionFile]:
        """Uploads a small Cog project and answers its files."""
        contents = {"cog.yaml": b"predict: predict.py:run\n", "predict.py": text.encode()}
        return [
            model_pb2.VersionFile(
                path=path, digest=await self.upload_blob(content), size_bytes=len(content)
            )
            for path, content in contents.items()
        ]

    async def push(
        self,
        model: str,
        files: Sequence[model_pb2.VersionFile],
        *,
        visibility: model_pb2.Visibility.ValueType = model_pb2.VISIBILITY_UNSPECIFIED,
    ) -> "Push":
        owner, _, name = model.partition("/")
        request = model_pb2.CreateVersionRequest(
            owner=owner,
            name=name,
            kind=model_pb2.VERSION_KIND_COG,
            files=files,
            visibility=visibility,
        )
        push = Push()
        async for answer in self.stream(self.models.CreateVersion, request):
            if answer.WhichOneof("result") == "step":
                push.steps.append(answer.step)
            else:
                push.version = answer.version
        return push

    async def get_model(self, model: str) -> model_pb2.Model:
        owner, _, name = model.partition("/")
        request = model_pb2.GetModelRequest(owner=owner, name=name)
        found: model_pb2.Model = (await self.call(self.models.GetModel, request)).model
        return found

    async def resolve(self, reference: str, *, account_id: str = "") -> model_pb2.VersionSpec:
        request = model_pb2.ResolveVersionRequest(
            reference=reference, account_id=account_id or self.account_id
        )
        spec: model_pb2.VersionSpec = (await self.call(self.models.ResolveVersion, request)).spec
        return spec

    async def create_file(
        self, content: bytes, header: file_pb2.FileHeader | None = None
    ) -> file_pb2.File:
        requests = [file_pb2.CreateFileRequest(header=header or file_pb2.FileHeader(name="a.txt"))]
        requests += [file_pb2.CreateFileRequest(chunk=part) for part in parts_of(content)]
        answer = await self.call(self.files.CreateFile, each(requests))
        file: file_pb2.File = answer.file
        return file

    async def get_file(self, file_id: str) -> file_pb2.File:
        request = file_pb2.GetFileRequest(file_id=file_id)
        file: file_pb2.File = (await self.call(self.files.GetFile, request)).file
        return file

    async def download(self, file_id: str) -> list[Any]:
        request = file_pb2.DownloadFileRequest(file_id=file_id)
        return [answer.body async for answer in self.stream(self.files.DownloadFile, request)]


@dataclass(slots=True)
class Push:
    """What a push answered."""

    steps: list[str] = field(default_factory=list)
    version: model_pb2.Version = field(default_factory=model_pb2.Version)


@dataclass(slots=True)
class StorageService:
    """The running service with its neighbours and its clock."""

    folder: Path
    parts: Parts
    channel: grpc.aio.Channel
    builds: GatedBuildService
    clock: TurnedClock

    def client(self, account_id: str, *, is_operator: bool = False) -> Client:
        return Client(Peer(self.channel, MESH_KEY), account_id, is_operator)

    def stored_paths(self) -> list[Path]:
        """Every file of the blob folder, unfinished ones included."""
        return [path for path in (self.folder / "blobs").rglob("*") if path.is_file()]


async def run_service(folder: Path, **settings: Any) -> AsyncIterator[StorageService]:
    """A service that ends with the iteration."""
    builds, clock = GatedBuildService(), TurnedClock()
    build_server = grpc.aio.server()
    build_pb2_grpc.add_BuildServiceServicer_to_server(builds, build_server)
    build_port = build_server.add_insecure_port("127.0.0.1:0")
    await build_server.start()
    values = StorageSettings(
        mesh_key=MESH_KEY,
        database_url=f"sqlite:///{folder / 'storage.db'}",
        blob_url=f"file://{folder / 'blobs'}",
        **({"inference_target": f"127.0.0.1:{build_port}"} | settings),
    )
    database = Database(values.database_url, MIGRATIONS)
    database.migrate()
    build_channel = open_channel(values.inference_target)
    parts = assemble(
        values,
        database=database,
        blobs=open_blobs(values.blob_url),
        inference=Peer(build_channel, MESH_KEY),
        clock=clock,
    )
    server = grpc.aio.server(interceptors=[MeshInterceptor(MESH_KEY)])
    for servicer in parts.servicers:
        servicer.add(servicer.servicer, server)
    channel = open_channel(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    await server.start()
    try:
        yield StorageService(folder, parts, channel, builds, clock)
    finally:
        await channel.close()
        await server.stop(0)
        await build_channel.close()
        await build_server.stop(0)
        await database.close()


def parts_of(content: bytes) -> list[bytes]:
    return [content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES)]


async def each(requests: Sequence[Any]) -> AsyncIterator[Any]:
    for request in requests:
        yield request
