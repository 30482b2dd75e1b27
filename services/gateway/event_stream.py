"""Server-sent events of one prediction: encoded, kept alive, resumed when a service restarts."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import orjson

from services.chassis import errors
from services.chassis.errors import RepriseError, Unavailable
from services.gateway.backends import RETRY_PAUSE_S, is_connection_loss
from services.gateway.web import Exchange, Header

log = logging.getLogger(__name__)

# An error that comes within this time is answered as a status, not inside a stream.
FIRST_EVENT_WAIT_S = 0.25
HEADERS: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
    (b"access-control-allow-origin", b"*"),
    (b"x-content-type-options", b"nosniff"),
)
OPENING = b": hi\n\n"
# One newline only: an empty line would end an event and reset the last id of some clients.
HEARTBEAT = b": ping\n"

_LINE_ENDS = re.compile(r"\r\n|\r|\n")

# Opens the rpc, to go on after the given event id.
OpenCall = Callable[[str], Any]
# Turns the data of an output event into what callers may see: (data, owner of the files).
RenderData = Callable[[str, str], Awaitable[str]]


def encode_event(*, event_id: str, event: str, data: str) -> bytes:
    """One event; each line of the data is a data line, with LF ends only."""
    lines = "".join(f"data: {line}\n" for line in _LINE_ENDS.split(data))
    return f"event: {event}\nid: {event_id}\n{lines}\n".encode("utf-8", "replace")


async def resumed_events(
    open_call: OpenCall, last_event_id: str, owner_key: str
) -> AsyncIterator[tuple[Any, str]]:
    """Events with the account that owns the stream; a lost connection is opened again."""
    while True:
        call = open_call(last_event_id)
        try:
            async for message in call:
                owner = dict(await call.initial_metadata()).get(owner_key, "")
                last_event_id = message.id or last_event_id
                yield message, owner
            return
        except grpc.aio.AioRpcError as error:
            meaning = errors.from_rpc(error)
            meaning.__cause__ = error
            if not isinstance(meaning, Unavailable) or not is_connection_loss(meaning):
                raise meaning from error
            log.info("stream is opened again", extra={"event": "stream_reopened"})
        finally:
            call.cancel()
        await asyncio.sleep(RETRY_PAUSE_S)


class EventStream:
    """Writes events to one caller until they end or the caller has gone."""

    def __init__(
        self,
        exchange: Exchange,
        events: AsyncIterator[tuple[Any, str]],
        *,
        render: RenderData,
        heartbeat_s: float,
    ) -> None:
        self._exchange = exchange
        self._events = events
        self._render = render
        self._heartbeat_s = heartbeat_s
        self._last_event_id = "0:0"

    async def run(self) -> None:
        """Answers the exchange; an error before the first event is raised."""
        gone = asyncio.create_task(self._exchange.disconnected())
        upcoming = asyncio.create_task(self._next())
        try:
            await asyncio.wait({upcoming}, timeout=FIRST_EVENT_WAIT_S)
            if upcoming.done() and upcoming.exception():
                upcoming.result()
            await self._exchange.start(200, HEADERS)
            await self._exchange.write(OPENING)
            while True:
                await asyncio.wait(
                    {upcoming, gone},
                    timeout=self._heartbeat_s,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if gone.done():
                    return
                if not upcoming.done():
                    await self._exchange.write(HEARTBEAT)
                    continue
                if not await self._write(upcoming):
                    break
                upcoming = asyncio.create_task(self._next())
            await self._exchange.end()
        finally:
            for task in (gone, upcoming):
                task.cancel()
            await asyncio.gather(gone, upcoming, return_exceptions=True)
            # Closes the rpc behind the events.
            await self._events.aclose()  # type: ignore[attr-defined]  # an async generator

    async def _next(self) -> tuple[Any, str] | None:
        return await anext(self._events, None)

    async def _write(self, upcoming: "asyncio.Task[tuple[Any, str] | None]") -> bool:
        try:
            item = upcoming.result()
        except RepriseError as error:
            await self._write_failure(error)
            return False
        if item is None:
            return False
        message, owner = item
        data = (
            await self._render(message.data, owner) if message.event == "output" else message.data
        )
        self._last_event_id = message.id
        await self._exchange.write(
            encode_event(event_id=message.id, event=message.event, data=data)
        )
        return True

    async def _write_failure(self, error: RepriseError) -> None:
        detail = orjson.dumps({"detail": error.message}).decode()
        for event, data in (("error", detail), ("done", '{"reason":"error"}')):
            event_id = self._last_event_id
            await self._exchange.write(encode_event(event_id=event_id, event=event, data=data))
