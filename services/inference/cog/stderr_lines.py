"""What a cog server writes to its stderr: the port, the model's setup logs, and a bounded tail
of the rest.
"""

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator

import orjson

_PORT = re.compile(r"Starting coglet server on 127\.0\.0\.1:(\d+)")
_MODEL_TARGETS = frozenset({"coglet::setup", "coglet::user"})
_READ_BYTES = 64 * 1024
_LINE_LIMIT_BYTES = 64 * 1024
_TAIL_LINE_COUNT = 50

TRUNCATED = "[truncated: more than {limit} bytes of logs]\n"


class BoundedLog:
    """Text up to a limit; what comes after it is replaced by one line that says so."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._size_bytes = 0
        self._parts: list[str] = []
        self._is_full = False

    def add(self, text: str) -> str:
        """Returns what was taken: the text, the part that fits with the notice, or nothing."""
        if self._is_full:
            return ""
        room = self._limit_bytes - self._size_bytes
        encoded = text.encode(errors="replace")
        if len(encoded) > room:
            self._is_full = True
            kept = encoded[:room].decode(errors="ignore")
            text = kept + ("" if kept.endswith("\n") or not kept else "\n")
            text += TRUNCATED.format(limit=self._limit_bytes)
        self._size_bytes += len(encoded)
        self._parts.append(text)
        return text

    @property
    def text(self) -> str:
        return "".join(self._parts)


class ServerLog:
    """Drains stderr for as long as the server lives; a full pipe would stop the model."""

    def __init__(self, limit_bytes: int) -> None:
        self.port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.tail: deque[str] = deque(maxlen=_TAIL_LINE_COUNT)
        self._setup = BoundedLog(limit_bytes)
        self._in_setup = True

    @property
    def setup_logs(self) -> str:
        return self._setup.text

    def end_setup(self) -> None:
        self._in_setup = False

    async def drain(self, stream: asyncio.StreamReader) -> None:
        async for line in _lines(stream):
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            record = orjson.loads(line)
            target, message = record["target"], str(record["fields"]["message"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            target, message = "", line.decode(errors="replace")
        if not self.port.done() and (match := _PORT.search(message)):
            self.port.set_result(int(match[1]))
            return
        self.tail.append(message)
        if self._in_setup and (target in _MODEL_TARGETS or not target):
            self._setup.add(message + "\n")


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Lines without their end; of a longer one than the limit only the first part."""
    buffer, is_skipping = b"", False
    while chunk := await stream.read(_READ_BYTES):
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            if not is_skipping:
                yield line
            is_skipping = False
        if len(buffer) > _LINE_LIMIT_BYTES:
            if not is_skipping:
                yield buffer[:_LINE_LIMIT_BYTES]
            buffer, is_skipping = b"", True
    if buffer and not is_skipping:
        yield buffer
