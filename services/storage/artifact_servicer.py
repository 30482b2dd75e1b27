"""ArtifactService: blobs over gRPC."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
from reprise.storage.v1 import artifact_pb2, artifact_pb2_grpc

from services.chassis.clock import Clock
from services.chassis.errors import NotFound
from services.chassis.server import account_of
from services.storage import registry
from services.storage.blobs import BlobStore, blob_key, verified
from services.storage.file_store import BlobUploads
from services.storage.uploads import Upload

CHUNK_SIZE_BYTES = 1024 * 1024

Context = grpc.aio.ServicerContext[Any, Any]


class ArtifactServicer(artifact_pb2_grpc.ArtifactServiceServicer):
    """Bytes are stored once, but each account must have uploaded what it uses."""

    def __init__(
        self, blob_uploads: BlobUploads, blobs: BlobStore, *, upload_idle_s: float, clock: Clock
    ) -> None:
        self._blob_uploads = blob_uploads
        self._blobs = blobs
        self._upload_idle_s = upload_idle_s
        self._clock = clock

    async def ListMissingBlobs(
        self, request: artifact_pb2.ListMissingBlobsRequest, context: Context
    ) -> artifact_pb2.ListMissingBlobsResponse:
        registry.check_digests(request.digests)
        found = await self._blob_uploads.sizes(request.digests, account_id=account_of(context))
        missing = [digest for digest in dict.fromkeys(request.digests) if digest not in found]
        return artifact_pb2.ListMissingBlobsResponse(digests=missing)

    async def UploadBlob(
        self, request_iterator: AsyncIterator[artifact_pb2.UploadBlobRequest], context: Context
    ) -> artifact_pb2.UploadBlobResponse:
        account_id = account_of(context)
        upload = Upload(request_iterator, idle_s=self._upload_idle_s)
        header = registry.check_blob_header(await upload.header())
        chunks = verified(upload.chunks(), digest=header.digest, size_bytes=header.size_bytes)
        if await self._blobs.has(blob_key(header.digest)):
            # Only who has the bytes gets them ascribed; storing them again adds nothing.
            async for _ in chunks:
                pass
        else:
            await self._blobs.write(blob_key(header.digest), chunks)
        await self._blob_uploads.record(
            header.digest, account_id=account_id, size_bytes=header.size_bytes, now=self._clock()
        )
        return artifact_pb2.UploadBlobResponse()

    async def DownloadBlob(
        self, request: artifact_pb2.DownloadBlobRequest, context: Context
    ) -> AsyncIterator[artifact_pb2.DownloadBlobResponse]:
        key = blob_key(registry.check_digest(request.digest))
        if not await self._blobs.has(key):
            raise NotFound(f"no blob {request.digest} is stored here")
        async for chunk in self._blobs.read(key, chunk_size_bytes=CHUNK_SIZE_BYTES):
            yield artifact_pb2.DownloadBlobResponse(chunk=chunk)
