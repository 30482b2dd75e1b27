"""Client-streaming uploads: one header, then chunks, each within its time."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from services.chassis.errors import InvalidInput


class Upload:
    """The requests of one upload, read as a header and its chunks."""

    def __init__(self, requests: AsyncIterator[Any], *, idle_s: float) -> None:
        self._requests = requests
        self._idle_s = idle_s

    async def header(self) -> Any:
        """The first request's header."""
        request = await self._next()
        if request is None or request.WhichOneof("part") != "header":
            raise InvalidInput("an upload must begin with its header")
        return request.header

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes that follow the header."""
        while (request := await self._next()) is not None:
            if request.WhichOneof("part") == "header":
                raise InvalidInput("an upload has one header; send chunks after it")
            yield request.chunk

    async def _next(self) -> Any:
        try:
            async with asyncio.timeout(self._idle_s):
                return await anext(self._requests, None)
        except TimeoutError:
            # Not Unavailable: callers would repeat what they have sent so far, and stall again.
            raise InvalidInput(
                f"the upload sent nothing for {self._idle_s:g} s and was given up; try again",
                reason="UPLOAD_STALLED",
            ) from None
