"""Server-sent events as bytes, read back by a strict parser."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reprise.scheduler.v1.prediction_pb2 import StreamPredictionResponse

from services.chassis.errors import NotFound, Unavailable
from services.gateway.event_stream import EventStream, encode_event
from services.gateway.web import Exchange


def _parse(text: str) -> list[dict[str, str]]:
    """The events of a stream by the rules of the HTML standard, ids required."""
    events: list[dict[str, str]] = []
    fields: dict[str, list[str]] = {}
    for line in text.split("\n"):
        if line.startswith(":"):
            continue
        if not line:
            if fields:
                events.append({name: "\n".join(values) for name, values in fields.items()})
            fields = {}
            continue
        name, colon, value = line.partition(":")
        assert colon
        fields.setdefault(name, []).append(value.removeprefix(" "))
    return events


class Connection:
    """The ASGI side of one exchange, in memory."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.gone = asyncio.Event()
        self.wrote = asyncio.Condition()
        scope = {"method": "GET", "path": "/", "query_string": b"", "headers": []}
        self.exchange = Exchange(scope, self._receive, self._send)

    @property
    def body(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    async def wait_for(self, text: str) -> None:
        async with asyncio.timeout(5), self.wrote:
            await self.wrote.wait_for(lambda: text in self.body)

    async def _receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        async with self.wrote:
            self.sent.append(message)
            self.wrote.notify_all()


def _event(index: int, event: str, data: str) -> tuple[StreamPredictionResponse, str]:
    return StreamPredictionResponse(id=f"17:{index}", event=event, data=data), "acme"


def _stream(
    connection: Connection, events: AsyncIterator[Any], heartbeat_s: float = 10
) -> EventStream:
    async def render(data: str, owner: str) -> str:
        return f"{owner}:{data}"

    return EventStream(connection.exchange, events, render=render, heartbeat_s=heartbeat_s)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_with_its_line_ends_made_plain(data: str) -> None:
    text = encode_event(event_id="1:2", event="output", data=data).decode()
    (event,) = _parse(text)
    plain = data.replace("\r\n", "\n").replace("\r", "\n")
    assert event == {"event": "output", "id": "1:2", "data": plain}
    assert "\r" not in text


async def test_events_follow_the_opening_comment_and_outputs_are_rendered() -> None:
    async def events() -> AsyncIterator[Any]:
        yield _event(0, "output", "a")
        yield _event(1, "done", "{}")

    connection = Connection()
    await _stream(connection, events()).run()
    assert connection.body.startswith(": hi\n\n")
    assert [event["data"] for event in _parse(connection.body)] == ["acme:a", "{}"]


async def test_an_early_error_is_raised_before_the_status_is_sent() -> None:
    async def events() -> AsyncIterator[Any]:
        raise NotFound("no such stream")
        yield

    connection = Connection()
    with pytest.raises(NotFound):
        await _stream(connection, events()).run()
    assert connection.sent == []


async def test_a_late_error_ends_the_stream_in_words() -> None:
    async def events() -> AsyncIterator[Any]:
        yield _event(4, "output", "a")
        raise Unavailable("lost for good")

    connection = Connection()
    await _stream(connection, events()).run()
    assert _parse(connection.body)[1:] == [
        {"event": "error", "id": "17:4", "data": '{"detail":"lost for good"}'},
        {"event": "done", "id": "17:4", "data": '{"reason":"error"}'},
    ]


async def test_a_silent_stream_gives_signs_of_life() -> None:
    async def events() -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield

    connection = Connection()
    running = asyncio.create_task(_stream(connection, events(), heartbeat_s=0.01).run())
    await connection.wait_for(": ping\n: ping\n")
    # Nothing but comments, and no empty line after them.
    assert connection.body.removeprefix(": hi\n\n").replace(": ping\n", "") == ""
    connection.gone.set()
    await asyncio.wait_for(running, 5)


async def test_a_caller_that_goes_closes_the_source() -> None:
    closed = asyncio.Event()

    async def events() -> AsyncIterator[Any]:
        try:
            yield _event(0, "output", "a")
            await asyncio.Event().wait()
        finally:
            closed.set()

    connection = Connection()
    running = asyncio.create_task(_stream(connection, events()).run())
    await connection.wait_for("acme:a")
    connection.gone.set()
    await asyncio.wait_for(running, 5)
    assert closed.is_set()
