"""In-memory storage service for the tests of its neighbours: catalogue, files and blobs."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import grpc
from google.api import httpbody_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from reprise.storage.v1 import (
    artifact_pb2,
    artifact_pb2_grpc,
    file_pb2,
    file_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
)
from reprise.wire.v1.json_pb2 import Json

CHUNK_BYTES = 256 * 1024
ANY_SCHEMA: Mapping[str, Any] = {
    "openapi": "3.0.2",
    "info": {"title": "Cog", "version": "0.1.0"},
    "paths": {},
    "components": {
        "schemas": {
            "Input": {"type": "object", "title": "Input", "properties": {}},
            "Output": {"title": "Output"},
        }
    },
}


class FakeModelService(model_pb2_grpc.ModelServiceServicer):
    """A catalogue that tests fill with `register`; the last registration is the latest version."""

    def __init__(self) -> None:
        self.models: dict[str, model_pb2.Model] = {}
        self.specs: dict[str, model_pb2.VersionSpec] = {}
        self.resolved: list[model_pb2.ResolveVersionRequest] = []

    def register(
        self,
        model: str = "alice/hello",
        *,
        openapi_schema: Mapping[str, Any] = ANY_SCHEMA,
        kind: model_pb2.VersionKind.ValueType = model_pb2.VERSION_KIND_COG,
        files: Sequence[model_pb2.VersionFile] = (),
        hardware: str = "cpu",
        is_iterator: bool = False,
        has_file_output: bool = False,
        is_private: bool = False,
    ) -> model_pb2.VersionSpec:
        owner, name = model.split("/")
        schema = json.dumps(openapi_schema)
        version_id = hashlib.sha256(f"{model}{schema}{len(self.specs)}".encode()).hexdigest()
        spec = model_pb2.VersionSpec(
            version_id=version_id,
            model=model,
            kind=kind,
            openapi_schema=Json(text=schema),
            files=files,
            hardware=hardware,
            is_iterator=is_iterator,
            has_file_output=has_file_output,
            owner=owner,
        )
        version = model_pb2.Version(
            id=version_id,
            created_at=_now(),
            cog_version="0.16.0",
            openapi_schema=spec.openapi_schema,
            kind=kind,
            model=model,
        )
        visibility = model_pb2.VISIBILITY_PRIVATE if is_private else model_pb2.VISIBILITY_PUBLIC
        self.specs[version_id] = spec
        self.models[model] = model_pb2.Model(
            url=f"/{model}",
            owner=owner,
            name=name,
            visibility=visibility,
            latest_version=version,
            created_at=_now(),
        )
        return spec

    async def CreateModel(
        self, request: model_pb2.CreateModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> model_pb2.CreateModelResponse:
        model = model_pb2.Model(
            url=f"/{request.owner}/{request.name}",
            owner=request.owner,
            name=request.name,
            visibility=request.visibility,
            created_at=_now(),
        )
        self.models[f"{request.owner}/{request.name}"] = model
        return model_pb2.CreateModelResponse(model=model)

    async def GetModel(
        self, request: model_pb2.GetModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> model_pb2.GetModelResponse:
        model = self.models.get(f"{request.owner}/{request.name}")
        if model is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "Model not found")
        return model_pb2.GetModelResponse(model=model)

    async def ListModels(
        self, request: model_pb2.ListModelsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> model_pb2.ListModelsResponse:
        return model_pb2.ListModelsResponse(models=reversed(self.models.values()))

    async def CreateVersion(
        self, request: model_pb2.CreateVersionRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[model_pb2.CreateVersionResponse]:
        yield model_pb2.CreateVersionResponse(step="Starting the model once")
        model = f"{request.owner}/{request.name}"
        self.register(model, kind=request.kind, files=request.files)
        yield model_pb2.CreateVersionResponse(version=self.models[model].latest_version)

    async def GetVersion(
        self, request: model_pb2.GetVersionRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> model_pb2.GetVersionResponse:
        spec = self.specs.get(request.version_id)
        if spec is None or spec.model != f"{request.owner}/{request.name}":
            await context.abort(grpc.StatusCode.NOT_FOUND, "Version not found")
            raise AssertionError
        return model_pb2.GetVersionResponse(version=_version(spec))

    async def ListVersions(
        self, request: model_pb2.ListVersionsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> model_pb2.ListVersionsResponse:
        model = f"{request.owner}/{request.name}"
        found = [_version(spec) for spec in self.specs.values() if spec.model == model]
        return model_pb2.ListVersionsResponse(versions=reversed(found))

    async def ResolveVersion(
        self, request: model_pb2.ResolveVersionRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> model_pb2.ResolveVersionResponse:
        self.resolved.append(request)
        model, _, version_id = request.reference.rpartition(":")
        if not model and "/" in version_id:
            latest = self.models.get(version_id)
            version_id = latest.latest_version.id if latest else ""
        spec = self.specs.get(version_id)
        if spec is None or (model and spec.model != model) or not self._is_visible(spec, request):
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"no version of yours is called {request.reference!r}"
            )
        return model_pb2.ResolveVersionResponse(spec=spec)

    def _is_visible(
        self, spec: model_pb2.VersionSpec, request: model_pb2.ResolveVersionRequest
    ) -> bool:
        is_public = self.models[spec.model].visibility == model_pb2.VISIBILITY_PUBLIC
        return is_public or spec.owner == request.account_id


class FakeFileService(file_pb2_grpc.FileServiceServicer):
    """Files by id, whoever asks; `put` stores one without a call."""

    def __init__(self) -> None:
        self.files: dict[str, file_pb2.File] = {}
        self.contents: dict[str, bytes] = {}

    def put(
        self,
        content: bytes,
        *,
        name: str = "file",
        content_type: str = "application/octet-stream",
        metadata: str = "{}",
    ) -> file_pb2.File:
        file_id = secrets.token_urlsafe(24)
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        created_at = _now()
        self.contents[file_id] = content
        self.files[file_id] = file_pb2.File(
            id=file_id,
            name=name,
            content_type=content_type,
            size=len(content),
            etag=md5,
            checksums={"md5": md5, "sha256": hashlib.sha256(content).hexdigest()},
            metadata=Json(text=metadata),
            created_at=created_at,
            expires_at=Timestamp(seconds=created_at.seconds + 86_400),
            urls={"get": f"/v1/files/{file_id}"},
        )
        return self.files[file_id]

    async def CreateFile(
        self,
        request_iterator: AsyncIterator[file_pb2.CreateFileRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> file_pb2.CreateFileResponse:
        header, content = file_pb2.FileHeader(), b""
        async for request in request_iterator:
            if request.WhichOneof("part") == "header":
                header = request.header
            content += request.chunk
        file = self.put(
            content,
            name=header.name or "file",
            content_type=header.content_type or "application/octet-stream",
            metadata=header.metadata.text or "{}",
        )
        return file_pb2.CreateFileResponse(file=file)

    async def GetFile(
        self, request: file_pb2.GetFileRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> file_pb2.GetFileResponse:
        await self._must_exist(request.file_id, context)
        return file_pb2.GetFileResponse(file=self.files[request.file_id])

    async def ListFiles(
        self, request: file_pb2.ListFilesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> file_pb2.ListFilesResponse:
        return file_pb2.ListFilesResponse(files=reversed(self.files.values()))

    async def DeleteFile(
        self, request: file_pb2.DeleteFileRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> file_pb2.DeleteFileResponse:
        await self._must_exist(request.file_id, context)
        del self.files[request.file_id], self.contents[request.file_id]
        return file_pb2.DeleteFileResponse()

    async def DownloadFile(
        self, request: file_pb2.DownloadFileRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[file_pb2.DownloadFileResponse]:
        await self._must_exist(request.file_id, context)
        content_type = self.files[request.file_id].content_type
        for chunk in _chunks(self.contents[request.file_id]):
            body = httpbody_pb2.HttpBody(content_type=content_type, data=chunk)
            yield file_pb2.DownloadFileResponse(body=body)
            content_type = ""

    async def _must_exist(self, file_id: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        if file_id not in self.files:
            await context.abort(grpc.StatusCode.NOT_FOUND, "File not found")


class FakeArtifactService(artifact_pb2_grpc.ArtifactServiceServicer):
    """Blobs by digest; `put` stores one without a call."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def put(
        self, path: str, content: bytes, *, is_executable: bool = False
    ) -> model_pb2.VersionFile:
        """Stores the bytes and answers the version file that names them."""
        digest = hashlib.sha256(content).hexdigest()
        self.blobs[digest] = content
        return model_pb2.VersionFile(
            path=path, digest=digest, size_bytes=len(content), is_executable=is_executable
        )

    async def ListMissingBlobs(
        self,
        request: artifact_pb2.ListMissingBlobsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> artifact_pb2.ListMissingBlobsResponse:
        missing = [digest for digest in request.digests if digest not in self.blobs]
        return artifact_pb2.ListMissingBlobsResponse(digests=missing)

    async def UploadBlob(
        self,
        request_iterator: AsyncIterator[artifact_pb2.UploadBlobRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> artifact_pb2.UploadBlobResponse:
        digest, content = "", b""
        async for request in request_iterator:
            digest = request.header.digest or digest
            content += request.chunk
        if hashlib.sha256(content).hexdigest() != digest:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the bytes do not match")
        self.blobs[digest] = content
        return artifact_pb2.UploadBlobResponse()

    async def DownloadBlob(
        self, request: artifact_pb2.DownloadBlobRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[artifact_pb2.DownloadBlobResponse]:
        if request.digest not in self.blobs:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no blob {request.digest}")
        for chunk in _chunks(self.blobs[request.digest]):
            yield artifact_pb2.DownloadBlobResponse(chunk=chunk)


class FakeStorage:
    """The three servicers of storage, to be added to one test server."""

    def __init__(self) -> None:
        self.models = FakeModelService()
        self.files = FakeFileService()
        self.artifacts = FakeArtifactService()

    def add_to(self, server: grpc.aio.Server) -> None:
        model_pb2_grpc.add_ModelServiceServicer_to_server(self.models, server)
        file_pb2_grpc.add_FileServiceServicer_to_server(self.files, server)
        artifact_pb2_grpc.add_ArtifactServiceServicer_to_server(self.artifacts, server)


def _version(spec: model_pb2.VersionSpec) -> model_pb2.Version:
    return model_pb2.Version(
        id=spec.version_id,
        created_at=_now(),
        cog_version="0.16.0",
        openapi_schema=spec.openapi_schema,
        kind=spec.kind,
        model=spec.model,
    )


def _chunks(content: bytes) -> list[bytes]:
    starts = range(0, max(len(content), 1), CHUNK_BYTES)
    return [content[start : start + CHUNK_BYTES] for start in starts]


def _now() -> Timestamp:
    now = Timestamp()
    now.GetCurrentTime()
    return now
