"""One HTTP exchange: the request as the gateway reads it, the answer as it is written."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from services.gateway import problem

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]

JSON_TYPE: Header = (b"content-type", b"application/json")
NO_STORE: Header = (b"cache-control", b"no-store")

# How long a refused body is read and thrown away, so that its sender gets to read the refusal.
LINGER_S = 5.0
# The longest pause within a body; slower senders hold no place.
BODY_PAUSE_MAX_S = 60.0


class Disconnected(Exception):
    """The caller went away before its request was whole."""


class Exchange:
    """A request and its answer over ASGI."""

    __slots__ = (
        "_is_body_read",
        "_receive",
        "_send",
        "headers",
        "method",
        "path",
        "query",
        "scope",
        "status",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: str = scope["query_string"].decode("latin-1")
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.status = 0
        self._receive = receive
        self._send = send
        self._is_body_read = False

    def header(self, name: bytes) -> str:
        """A header's text; empty where it was not sent."""
        return self.headers.get(name, b"").decode("latin-1")

    @property
    def content_length(self) -> int | None:
        """The announced size of the body."""
        text = self.headers.get(b"content-length", b"")
        return int(text) if text.isdigit() else None

    @property
    def has_body(self) -> bool:
        """Whether the headers announce a body."""
        return bool(self.content_length) or b"transfer-encoding" in self.headers

    async def body(self, limit_bytes: int) -> bytes:
        """The whole body; refused before it is read where it is announced as too large."""
        if (self.content_length or 0) > limit_bytes:
            raise _body_too_large(limit_bytes)
        parts: list[bytes] = []
        size = 0
        async for chunk in self.chunks():
            size += len(chunk)
            if size > limit_bytes:
                raise _body_too_large(limit_bytes)
            parts.append(chunk)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        while not self._is_body_read:
            try:
                async with asyncio.timeout(BODY_PAUSE_MAX_S):
                    message = await self._receive()
            except TimeoutError:
                raise problem.body_timeout(BODY_PAUSE_MAX_S) from None
            if message["type"] == "http.disconnect":
                raise Disconnected
            self._is_body_read = not message.get("more_body")
            if chunk := message.get("body"):
                yield chunk

    async def answer(self, status: int, headers: Sequence[Header], body: bytes = b"") -> None:
        """Sends a whole answer."""
        await self.start(status, headers)
        await self._send({"type": "http.response.body", "body": body})
        if self.has_body and not self._is_body_read:
            await self._linger()

    async def start(self, status: int, headers: Sequence[Header]) -> None:
        """Sends status and headers of an answer whose body follows by write() and end()."""
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, chunk: bytes) -> None:
        """Sends a part of the body."""
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self) -> None:
        """Ends the body."""
        await self._send({"type": "http.response.body", "body": b""})

    async def disconnected(self) -> None:
        """Returns once the caller has gone."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _linger(self) -> None:
        # Closing with unread bytes resets the connection, and many clients then never see why.
        try:
            async with asyncio.timeout(LINGER_S):
                async for _ in self.chunks():
                    pass
        except (TimeoutError, Disconnected):
            return


def _body_too_large(limit_bytes: int) -> Exception:
    return problem.too_large(
        f"The request body is larger than the limit of {limit_bytes} bytes; "
        "upload files with POST /v1/files and send their URLs."
    )
