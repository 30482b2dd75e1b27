"""One keep-alive HTTP/1.1 connection to a cog server on loopback, made for many small answers.

Measured with a no-op model on two cores: an event stream costs 0.15 ms of client CPU here and 0.33
ms through aiohttp; a plain POST plus its logs from the server's stderr costs 0.18 ms. So every
prediction, iterator or not, takes the event stream: one path, logs in order, partial output kept
after a failure.
"""

import asyncio
import re
import socket
from dataclasses import dataclass

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: (\d{1,12})\r\n", re.IGNORECASE)
_READ_BYTES = 256 * 1024
_HEAD_LIMIT_BYTES = 16 * 1024
_SIZE_LINE_LIMIT_BYTES = 32


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
        self._received = bytearray()
        self._event_text = b""
        self._is_at_end = True

    @classmethod
    async def open(cls, port: int, *, max_answer_bytes: int) -> "Connection":
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_READ_BYTES)
        return cls(reader, writer, max_answer_bytes)

    @property
    def is_usable(self) -> bool:
        is_open = not self._writer.is_closing() and not self._reader.at_eof()
        return is_open and self._is_at_end and not self._received

    def close(self) -> None:
        self._writer.close()

    async def request(
        self, method: str, path: str, body: bytes = b"", *, accept: str = "*/*"
    ) -> int:
        """Sends one request and returns the status; then the answer must be read to its end."""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {accept}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._is_at_end = False
        self._writer.write(head.encode() + body)
        await self._writer.drain()
        while (end := self._received.find(b"\r\n\r\n")) < 0:
            if len(self._received) > _HEAD_LIMIT_BYTES:
                raise ProtocolError("the answer's head is too long")
            await self._receive()
        self._head = self._take(end + 4)
        status = _STATUS.match(self._head)
        if status is None:
            raise ProtocolError("the answer has no status line")
        return int(status[1])

    async def until_closed(self) -> None:
        while await self._reader.read(_READ_BYTES):
            pass

    async def read_body(self) -> bytes:
        length = _CONTENT_LENGTH.search(self._head)
        if length is None:
            raise ProtocolError("the answer has no length")
        size = int(length[1])
        if size > self._max_answer_bytes:
            raise AnswerTooLarge(f"the answer has {size} bytes")
        while len(self._received) < size:
            await self._receive()
        self._is_at_end = True
        return self._take(size)

    async def read_events(self) -> list[ServerEvent]:
        """The events that have arrived, at least one; none after the stream's end."""
        while not self._is_at_end:
            chunk = self._next_chunk()
            while chunk:
                self._event_text += chunk
                chunk = self._next_chunk()
            self._is_at_end = chunk == b""
            events = self._split_events()
            if events or self._is_at_end:
                return events
            await self._receive()
        return []

    def _next_chunk(self) -> bytes | None:
        """None while it has not arrived completely; empty at the end of the answer."""
        line_end = self._received.find(b"\r\n", 0, _SIZE_LINE_LIMIT_BYTES)
        if line_end < 0:
            if len(self._received) > _SIZE_LINE_LIMIT_BYTES:
                raise ProtocolError("a chunk without a size")
            return None
        try:
            size = int(self._received[:line_end], 16)
        except ValueError:
            raise ProtocolError("a chunk without a size") from None
        if size > self._max_answer_bytes:
            raise AnswerTooLarge(f"one chunk has {size} bytes")
        start = line_end + 2
        if len(self._received) < start + size + 2:
            return None
        return self._take(start + size + 2)[start:-2]

    def _split_events(self) -> list[ServerEvent]:
        if len(self._event_text) > self._max_answer_bytes:
            raise AnswerTooLarge(f"one event has more than {self._max_answer_bytes} bytes")
        if b"\n\n" not in self._event_text:
            return []
        *blocks, self._event_text = self._event_text.split(b"\n\n")
        return [event for block in blocks if (event := _event(block)) is not None]

    def _take(self, size: int) -> bytes:
        taken = bytes(memoryview(self._received)[:size])
        del self._received[:size]
        return taken

    async def _receive(self) -> None:
        # The server sends small packets without TCP_NODELAY, so each burst would wait 40 ms for
        # our delayed ACK. The kernel forgets the option, hence once before every read.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        received = await self._reader.read(_READ_BYTES)
        if not received:
            raise ProtocolError("the connection was closed in the middle of an answer")
        self._received += received


def _event(block: bytes) -> ServerEvent | None:
    """None for keep-alive comments."""
    name, data = "", []
    for line in block.split(b"\n"):
        if line.startswith(b"event: "):
            name = line[7:].decode()
        elif line.startswith(b"data: "):
            data.append(line[6:])
    return ServerEvent(name, b"\n".join(data)) if name else None
