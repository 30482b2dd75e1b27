"""FileService: accounts' files over gRPC."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.api import httpbody_pb2
from reprise.storage.v1 import file_pb2, file_pb2_grpc
from reprise.wire.v1.json_pb2 import Json
from sqlalchemy import Row

from services.chassis.clock import SECOND_US, Clock, timestamp
from services.chassis.errors import NotFound, file_too_large
from services.chassis.paging import bounded_page_size
from services.chassis.server import account_of
from services.storage import files
from services.storage.blobs import BlobStore, Intake, file_key
from services.storage.file_store import FileStore, StoredBytes
from services.storage.settings import StorageSettings
from services.storage.uploads import Upload

PAGE_SIZE_MAX = 100
CHUNK_SIZE_BYTES = 256 * 1024

Context = grpc.aio.ServicerContext[Any, Any]


class FileServicer(file_pb2_grpc.FileServiceServicer):
    """Files of the calling account; those of others are not found."""

    def __init__(
        self, store: FileStore, blobs: BlobStore, settings: StorageSettings, *, clock: Clock
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._settings = settings
        self._clock = clock

    async def CreateFile(
        self, request_iterator: AsyncIterator[file_pb2.CreateFileRequest], context: Context
    ) -> file_pb2.CreateFileResponse:
        account_id = account_of(context)
        upload = Upload(request_iterator, idle_s=self._settings.upload_idle_s)
        header = files.check_header(await upload.header())
        file_id, now = files.new_file_id(), self._clock()
        await self._store.reserve(
            file_id,
            header,
            account_id=account_id,
            now=now,
            expires_at=now + self._settings.file_ttl_s * SECOND_US,
        )
        try:
            stored = await self._receive(file_id, upload)
        except BaseException:
            await self._store.expire(file_id, now=now)
            raise
        return file_pb2.CreateFileResponse(file=_pack(await self._store.complete(file_id, stored)))

    async def GetFile(
        self, request: file_pb2.GetFileRequest, context: Context
    ) -> file_pb2.GetFileResponse:
        return file_pb2.GetFileResponse(file=_pack(await self._find(request.file_id, context)))

    async def ListFiles(
        self, request: file_pb2.ListFilesRequest, context: Context
    ) -> file_pb2.ListFilesResponse:
        page = await self._store.list_page(
            account_id=account_of(context),
            now=self._clock(),
            page_token=request.page_token,
            page_size=bounded_page_size(
                request.page_size, default=PAGE_SIZE_MAX, maximum=PAGE_SIZE_MAX
            ),
        )
        return file_pb2.ListFilesResponse(
            files=[_pack(row) for row in page.rows],
            next_page_token=page.next_page_token,
            previous_page_token=page.previous_page_token,
        )

    async def DeleteFile(
        self, request: file_pb2.DeleteFileRequest, context: Context
    ) -> file_pb2.DeleteFileResponse:
        row = await self._find(request.file_id, context)
        # Gone for everybody first; the sweep ends what a crash leaves half done.
        await self._store.expire(row.file_id, now=self._clock())
        await self._blobs.delete(file_key(row.file_id))
        await self._store.remove([row.file_id])
        return file_pb2.DeleteFileResponse()

    async def DownloadFile(
        self, request: file_pb2.DownloadFileRequest, context: Context
    ) -> AsyncIterator[file_pb2.DownloadFileResponse]:
        row = await self._find(request.file_id, context)
        # An empty file has a content type, too.
        first = httpbody_pb2.HttpBody(content_type=row.content_type)
        chunks = self._blobs.read(file_key(row.file_id), chunk_size_bytes=CHUNK_SIZE_BYTES)
        try:
            first.data = await anext(chunks, b"")
        except NotFound:
            # It was deleted a moment ago.
            raise files.not_found() from None
        yield file_pb2.DownloadFileResponse(body=first)
        async for chunk in chunks:
            yield file_pb2.DownloadFileResponse(body=httpbody_pb2.HttpBody(data=chunk))

    async def _receive(self, file_id: str, upload: Upload) -> StoredBytes:
        size_bytes_max = self._settings.file_size_bytes_max
        intake = Intake(
            upload.chunks(),
            size_bytes_max=size_bytes_max,
            error=file_too_large(size_bytes_max),
            algorithms=("md5", "sha256"),
        )
        await self._blobs.write(file_key(file_id), aiter(intake))
        return StoredBytes(size_bytes=intake.size_bytes, **intake.checksums())

    async def _find(self, file_id: str, context: Context) -> Row[Any]:
        row = await self._store.find(
            files.check_file_id(file_id),
            account_id=account_of(context),
            now=self._clock(),
        )
        if row is None:
            raise files.not_found()
        return row


def _pack(row: Row[Any]) -> file_pb2.File:
    return file_pb2.File(
        id=row.file_id,
        name=row.name,
        content_type=row.content_type,
        size=row.size_bytes,
        etag=row.md5,
        checksums={"md5": row.md5, "sha256": row.sha256},
        metadata=Json(text=row.metadata),
        created_at=timestamp(row.created_at),
        expires_at=timestamp(row.expires_at),
        urls={"get": f"/v1/files/{row.file_id}"},
    )
