"""Files over HTTP: forms in, bytes out, and the files that inputs and outputs name."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import quote

from google.protobuf.descriptor import FieldDescriptor
from reprise.storage.v1 import file_pb2
from reprise.wire.v1 import options_pb2
from reprise.wire.v1.json_pb2 import Json

from services.chassis.errors import NotFound, file_too_large
from services.gateway import file_links
from services.gateway.auth import Identity
from services.gateway.backends import Backends
from services.gateway.file_links import MARKER, LinkSigner
from services.gateway.multipart import FormReader
from services.gateway.settings import GatewaySettings
from services.gateway.web import Exchange, Header

CHUNK_SIZE = 256 * 2**10
# A form is a little larger than its file.
FORM_OVERHEAD_MAX = 2 * 2**20

_SERVICE = file_pb2.DESCRIPTOR.services_by_name["FileService"]
_CREATE = _SERVICE.methods_by_name["CreateFile"]
_GET = _SERVICE.methods_by_name["GetFile"]
_DOWNLOAD = _SERVICE.methods_by_name["DownloadFile"]

# Files are users' content on the API's own origin: a browser must not run what they hold.
_GUARDS: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"sandbox; default-src 'none'"),
    (b"access-control-allow-origin", b"*"),
    (b"cross-origin-resource-policy", b"cross-origin"),
)


@dataclass(frozen=True, slots=True)
class Reader:
    """Whose files are read, for which answer."""

    identity: Identity
    base_url: str
    request_id: str


class Files:
    """What the gateway does with files; storage keeps them."""

    def __init__(self, backends: Backends, signer: LinkSigner, settings: GatewaySettings) -> None:
        self._backends = backends
        self._signer = signer
        self._settings = settings
        self._public_hosts = (
            frozenset({file_links.host_of(settings.public_url)})
            if settings.public_url
            else frozenset()
        )

    async def upload(self, exchange: Exchange, identity: Identity, request_id: str) -> Any:
        """Stores the file of an upload form; the answer message of CreateFile."""
        limit = self._settings.file_size_max
        if (exchange.content_length or 0) > limit + FORM_OVERHEAD_MAX:
            raise file_too_large(limit)
        reader = FormReader(exchange.header(b"content-type"), limit)
        form = await reader.read(exchange.chunks())
        header = file_pb2.FileHeader(
            name=form.name, content_type=form.content_type, metadata=Json(text=form.metadata)
        )
        try:
            return await self._create(header, form.content, identity, request_id)
        finally:
            form.content.close()

    async def download(self, exchange: Exchange, file_id: str, reader: Reader) -> None:
        """Streams a file's bytes."""
        found = await self._file(file_id, reader)
        chunks = self._chunks(file_id, reader)
        # The first chunk before the status: what is gone is answered with 404.
        first = await anext(chunks, b"")
        headers = [
            (b"content-type", _header_text(found.content_type or "application/octet-stream")),
            (b"content-length", str(found.size).encode()),
            (b"content-disposition", _disposition(found.name)),
            (b"cache-control", b"private, max-age=3600"),
            (b"etag", _header_text(f'"{found.etag}"')),
            *_GUARDS,
        ]
        try:
            await exchange.start(200, headers)
            await exchange.write(first)
            async for chunk in chunks:
                await exchange.write(chunk)
            await exchange.end()
        finally:
            await chunks.aclose()  # type: ignore[attr-defined]  # an async generator

    async def take_in(self, value: Json, reader: Reader, *, field: str, host: str) -> None:
        """Rewrites an input: own file URLs and long data URLs become stored files."""
        hosts = self._public_hosts | {host.lower()}
        account_id = reader.identity.account_id
        text = file_links.take_in_file_urls(value.text, hosts=hosts, account_id=account_id)
        matches = file_links.find_data_urls(text, longer_than=self._settings.data_url_size_max)
        pieces, position = [], 0
        for match in matches:
            file_id = await self._store_data_url(match, field, reader)
            pieces += [text[position : match.start()], f'"{MARKER}{file_id}"']
            position = match.end()
        if pieces:
            text = "".join([*pieces, text[position:]])
        if text is not value.text:
            value.text = text

    async def give_out(
        self, found: Iterable[tuple[FieldDescriptor, Json]], reader: Reader, *, is_list: bool
    ) -> None:
        """Rewrites stored files in an answer to URLs, signed or with the data in them."""
        left_bytes = self._settings.inline_file_size_max
        for field, value in found:
            may_inline = field.GetOptions().Extensions[options_pb2.inline_files]
            urls: dict[str, str] = {}
            for file_id in file_links.file_ids(value.text):
                if file_id in urls:
                    continue
                data_url = None
                if may_inline and not is_list and not reader.base_url.startswith("https:"):
                    data_url = await self._data_url(file_id, reader, left_bytes)
                left_bytes -= len(data_url or "")
                urls[file_id] = data_url or self.url(file_id, reader)
            value.text = file_links.replace_files(value.text, urls)

    async def give_out_chunk(self, data: str, reader: Reader) -> str:
        """A stream's output: a stored file as a URL, everything else as it is."""
        file_id = data.removeprefix(MARKER)
        if file_id == data or not reader.identity.account_id or not file_links.is_file_id(file_id):
            return data
        data_url = None
        if not reader.base_url.startswith("https:"):
            limit = self._settings.inline_file_size_max
            data_url = await self._data_url(file_id, reader, limit)
        return data_url or self.url(file_id, reader)

    def url(self, file_id: str, reader: Reader) -> str:
        """The signed URL of one of the reader's files."""
        owner = reader.identity.account_id
        return self._signer.url(base_url=reader.base_url, owner=owner, file_id=file_id)

    async def _file(self, file_id: str, reader: Reader) -> file_pb2.File:
        answer = await self._backends.call(
            _GET,
            file_pb2.GetFileRequest(file_id=file_id),
            identity=reader.identity,
            request_id=reader.request_id,
            timeout_s=self._settings.call_timeout_s,
        )
        file: file_pb2.File = answer.file
        return file

    async def _chunks(self, file_id: str, reader: Reader) -> AsyncIterator[bytes]:
        answers = self._backends.stream(
            _DOWNLOAD,
            file_pb2.DownloadFileRequest(file_id=file_id),
            identity=reader.identity,
            request_id=reader.request_id,
        )
        async for answer in answers:
            if answer.body.data:
                yield answer.body.data

    async def _data_url(self, file_id: str, reader: Reader, limit_bytes: int) -> str | None:
        """The file as a data URL; None where it is gone or too large."""
        try:
            found = await self._file(file_id, reader)
            if found.size > limit_bytes:
                return None
            content = b"".join([chunk async for chunk in self._chunks(file_id, reader)])
        except NotFound:
            return None
        content_type = found.content_type.replace('"', "").replace("\\", "")
        return f"data:{content_type};base64,{b64encode(content).decode()}"

    async def _store_data_url(self, match: Any, field: str, reader: Reader) -> str:
        # Megabytes of base64: off the loop.
        data_url = await asyncio.to_thread(file_links.decode_data_url, match, field)
        header = file_pb2.FileHeader(
            name="input", content_type=data_url.content_type, metadata=Json(text="{}")
        )
        answer = await self._create(header, data_url.content, reader.identity, reader.request_id)
        return str(answer.file.id)

    async def _create(
        self,
        header: file_pb2.FileHeader,
        content: BinaryIO | bytes,
        identity: Identity,
        request_id: str,
    ) -> Any:
        # A form's file is spooled, so that a repeat after a lost connection can read it again.
        return await self._backends.call_upload(
            _CREATE,
            lambda: _requests(header, content),
            identity=identity,
            request_id=request_id,
            timeout_s=self._settings.call_timeout_s + self._settings.fetch_timeout_s,
        )


async def _requests(
    header: file_pb2.FileHeader, content: BinaryIO | bytes
) -> AsyncIterator[file_pb2.CreateFileRequest]:
    yield file_pb2.CreateFileRequest(header=header)
    if isinstance(content, bytes):
        for start in range(0, len(content), CHUNK_SIZE):
            yield file_pb2.CreateFileRequest(chunk=content[start : start + CHUNK_SIZE])
        return
    content.seek(0)
    # Reads come from memory or the page cache: a thread per chunk would cost more.
    while chunk := content.read(CHUNK_SIZE):
        yield file_pb2.CreateFileRequest(chunk=chunk)


def _disposition(name: str) -> bytes:
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in name)
    return f"inline; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}".encode()


def _header_text(text: str) -> bytes:
    return "".join(c for c in text if c.isascii() and c.isprintable()).encode()
