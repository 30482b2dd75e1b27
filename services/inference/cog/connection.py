"""One keep-alive HTTP/1.1 connection to a cog server on loopback, made for many small answers.

Measured with a no-op model on two cores: an event stream costs 0.15 ms of client CPU here and 0.33 ms through
aiohttp; a plain POST plus its logs from the server's stderr costs 0.18 ms. So every prediction, iterator or not,
takes the event stream: one path, logs in order, partial output kept after a failure.
"""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: (\d{1,12})\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: chunked\r\n", re.IGNORECASE)


class AnswerTooLarge(Exception):
    """The server sent more than the agreed bound; the connection cannot be used again."""


class ProtocolError(ConnectionError):
    """The peer does not speak the HTTP that the cog server speaks."""


@dataclass(frozen=True, slots=True)
class ServerEvent:
    name: str
    data: bytes


class Connection:
    """Not shared: one request at a time; after an error only close() may be called."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, max_answer_bytes: int
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._socket = writer.get_extra_info("socket")
        self._max_answer_bytes = max_answer_bytes
        self._head = b""

    @classmethod
    async def open(cls, port: int, *, max_answer_bytes: int) -> "Connection":
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=256 * 1024)
        return cls(reader, writer, max_answer_bytes)

    @property
    def is_usable(self) -> bool:
        return not self._writer.is_closing() and not self._reader.at_eof()

    def close(self) -> None:
        self._writer.close()

    async def request(
        self, method: str, path: str, body: bytes = b"", *, accept: str = "*/*"
    ) -> int:
        """Sends one request and returns the status; then read_body() or events() must be drained."""
        self._writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {accept}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await self._writer.drain()
        self._head = await self._reader.readuntil(b"\r\n\r\n")
        status = _STATUS.match(self._head)
        if status is None:
            raise ProtocolError("no status line")
        return int(status[1])

    async def until_closed(self) -> None:
        while await self._reader.read(4096):
            pass

    async def read_body(self) -> bytes:
        if _CHUNKED.search(self._head):
            return b"".join([chunk async for chunk in self._chunks()])
        length = _CONTENT_LENGTH.search(self._head)
        if length is None:
            raise ProtocolError("an answer without a length")
        if int(length[1]) > self._max_answer_bytes:
            raise AnswerTooLarge(f"the answer has {int(length[1])} bytes")
        return await self._reader.readexactly(int(length[1]))

    async def events(self) -> AsyncIterator[ServerEvent]:
        """Ends after the server has closed the stream; the connection can then be used again."""
        buffer = b""
        async for chunk in self._chunks():
            buffer = buffer + chunk if buffer else chunk
            if len(buffer) > self._max_answer_bytes:
                raise AnswerTooLarge(f"one event has more than {self._max_answer_bytes} bytes")
            if not buffer.endswith(b"\n\n") and b"\n\n" not in chunk:
                continue
            *blocks, buffer = buffer.split(b"\n\n")
            for block in blocks:
                event = _event(block)
                if event is not None:
                    yield event

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            self._acknowledge_at_once()
            size = int(await self._reader.readline(), 16)
            if size > self._max_answer_bytes:
                raise AnswerTooLarge(f"one chunk has {size} bytes")
            chunk = await self._reader.readexactly(size + 2)
            if size == 0:
                return
            yield chunk[:-2]

    def _acknowledge_at_once(self) -> None:
        # The server sends small packets without TCP_NODELAY, so each burst would wait 40 ms for our delayed ACK.
        # The kernel forgets the option, hence once before every read.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def _event(block: bytes) -> ServerEvent | None:
    """None for keep-alive comments."""
    name, data = "", []
    for line in block.split(b"\n"):
        if line.startswith(b"event: "):
            name = line[7:].decode()
        elif line.startswith(b"data: "):
            data.append(line[6:])
    return ServerEvent(name, b"\n".join(data)) if name else None
