"""Files of predictions: what an input names is brought, what a model makes is stored."""

import asyncio
import base64
import binascii
import mimetypes
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from reprise.gateway.v1 import fetch_pb2, fetch_pb2_grpc
from reprise.storage.v1 import file_pb2, file_pb2_grpc

from services.chassis.channels import Peer
from services.chassis.errors import Internal, RepriseError, Unavailable
from services.inference.file_shapes import FileShape

REFERENCE = "reprise-file:"
_CHUNK_BYTES = 1024 * 1024
_FILE_COUNT_MAX = 1000
_MEDIA_TYPE = re.compile(r"[\w.+-]{1,60}/[\w.+-]{1,60}")
_EXTENSIONS = {
    "image/jpeg": ".jpg",
    "audio/mpeg": ".mp3",
    "audio/x-wav": ".wav",
    "text/plain": ".txt",
}


class InputFileRefused(ValueError):
    """An input's file cannot be used; the text names the field."""


@dataclass(frozen=True, slots=True)
class FileContent:
    content: bytes
    media_type: str

    def data_uri(self) -> str:
        return f"data:{self.media_type};base64,{base64.b64encode(self.content).decode()}"


def parse_data_uri(text: str) -> FileContent:
    """Raises ValueError."""
    head, comma, body = text[5:].partition(",")
    if not comma:
        raise ValueError("a data: URL without a comma")
    media_type, *parameters = head.split(";")
    if not _MEDIA_TYPE.fullmatch(media_type):
        media_type = "text/plain" if not media_type else "application/octet-stream"
    content = unquote_to_bytes(body)
    if "base64" in parameters:
        try:
            content = base64.b64decode(content, validate=True)
        except binascii.Error as error:
            raise ValueError(f"broken base64: {error}") from None
    return FileContent(content, media_type)


class PredictionFiles:
    """Reads with the rights of the prediction's account and stores in its name."""

    def __init__(
        self, *, storage: Peer, gateway: Peer, timeout_s: float, input_max_bytes: int
    ) -> None:
        self._storage = storage
        self._gateway = gateway
        self._timeout_s = timeout_s
        self._input_max_bytes = input_max_bytes
        self._file_stub = file_pb2_grpc.FileServiceStub(storage.channel)
        self._fetch_stub = fetch_pb2_grpc.FetchServiceStub(gateway.channel)

    async def bring(
        self, value: Mapping[str, Any], shapes: Mapping[str, FileShape], account_id: str
    ) -> dict[str, Any]:
        """The input with every stored file and URL as a data: URL. Raises InputFileRefused."""
        brought = dict(value)
        for name in shapes.keys() & brought.keys():
            item = brought[name]
            if isinstance(item, list):
                if len(item) > _FILE_COUNT_MAX:
                    raise InputFileRefused(f"{name}: more than {_FILE_COUNT_MAX} files")
                brought[name] = [
                    await self._bring_one(f"{name}/{index}", entry, account_id)
                    for index, entry in enumerate(item)
                ]
            else:
                brought[name] = await self._bring_one(name, item, account_id)
        return brought

    async def store(self, value: Any, shape: FileShape | None, account_id: str) -> Any:
        """The output with the data: URLs that its schema calls files replaced by stored files."""
        if shape is None or value is None:
            return value
        if shape.is_file:
            if isinstance(value, str) and value.startswith("data:"):
                return await self._store_one(value, account_id)
            return value
        if isinstance(value, list):
            return [await self.store(item, shape.items, account_id) for item in value]
        if isinstance(value, dict):
            return {
                name: await self.store(item, shape.properties.get(name, shape.others), account_id)
                for name, item in value.items()
            }
        return value

    async def _bring_one(self, field: str, value: Any, account_id: str) -> Any:
        if not isinstance(value, str) or value.startswith("data:"):
            return value
        try:
            async with asyncio.timeout(self._timeout_s):
                if value.startswith(REFERENCE):
                    found = await self._download(field, value[len(REFERENCE) :], account_id)
                elif value.startswith(("http://", "https://")):
                    found = await self._fetch(field, value, account_id)
                else:
                    return value
        except TimeoutError:
            reason = f"{field}: the file was not read within {self._timeout_s:g} s"
            raise InputFileRefused(reason) from None
        except (Unavailable, Internal):
            raise
        except RepriseError as error:
            raise InputFileRefused(f"{field}: {error.message}") from error
        return await asyncio.to_thread(found.data_uri)

    async def _download(self, field: str, file_id: str, account_id: str) -> FileContent:
        chunks = self._bounded(field)
        media_type = ""
        request = file_pb2.DownloadFileRequest(file_id=file_id)
        async for answer in self._storage.stream(
            self._file_stub.DownloadFile, request, account_id=account_id
        ):
            chunks.add(answer.body.data)
            media_type = media_type or answer.body.content_type
        return chunks.whole(media_type)

    async def _fetch(self, field: str, url: str, account_id: str) -> FileContent:
        chunks = self._bounded(field)
        media_type = ""
        request = fetch_pb2.FetchUrlRequest(url=url)
        async for answer in self._gateway.stream(
            self._fetch_stub.FetchUrl, request, account_id=account_id
        ):
            chunks.add(answer.chunk)
            media_type = media_type or answer.content_type
        return chunks.whole(media_type)

    def _bounded(self, field: str) -> "_BoundedBytes":
        return _BoundedBytes(field, self._input_max_bytes)

    async def _store_one(self, text: str, account_id: str) -> str:
        try:
            file = await asyncio.to_thread(parse_data_uri, text)
        except ValueError:
            # What a model calls a file and is none stays what it is.
            return text
        answer = await self._storage.call(
            self._file_stub.CreateFile,
            _parts(file),
            timeout_s=self._timeout_s,
            account_id=account_id,
        )
        return f"{REFERENCE}{answer.file.id}"


class _BoundedBytes:
    def __init__(self, field: str, max_bytes: int) -> None:
        self._field = field
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size > self._max_bytes:
            raise InputFileRefused(
                f"{self._field}: the file has more than {self._max_bytes} bytes, which is the most"
            )
        self._parts.append(chunk)

    def whole(self, media_type: str) -> FileContent:
        media_type = media_type.partition(";")[0].strip()
        if not _MEDIA_TYPE.fullmatch(media_type):
            media_type = "application/octet-stream"
        return FileContent(b"".join(self._parts), media_type)


async def _parts(file: FileContent) -> AsyncIterator[file_pb2.CreateFileRequest]:
    header = file_pb2.FileHeader(name=file_name(file.media_type), content_type=file.media_type)
    yield file_pb2.CreateFileRequest(header=header)
    for start in range(0, len(file.content), _CHUNK_BYTES):
        yield file_pb2.CreateFileRequest(chunk=file.content[start : start + _CHUNK_BYTES])


def file_name(media_type: str) -> str:
    extension = _EXTENSIONS.get(media_type) or mimetypes.guess_extension(media_type) or ""
    return f"output{extension}"
