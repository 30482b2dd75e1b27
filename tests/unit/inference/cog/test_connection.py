"""The HTTP client against servers that answer in every possible slice, and against bad ones."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from services.inference.cog.connection import (
    AnswerTooLarge,
    Connection,
    ProtocolError,
    ServerEvent,
)

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))


@asynccontextmanager
async def answering(slices: list[bytes], limit: int = 10_000) -> AsyncIterator[Connection]:
    """A connection to a server that sends these slices after each request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                for part in slices:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0)
                if not slices:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        connection = await Connection.open(port, max_answer_bytes=limit)
        try:
            yield connection
        finally:
            connection.close()


async def all_events(connection: Connection) -> list[ServerEvent]:
    events = []
    while batch := await connection.read_events():
        events += batch
    return events


SLICERS: dict[str, Callable[[bytes], list[bytes]]] = {
    "at once": lambda answer: [answer],
    "byte by byte": lambda answer: [bytes([byte]) for byte in answer],
    "in sevens": lambda answer: [answer[i : i + 7] for i in range(0, len(answer), 7)],
}


@pytest.mark.parametrize("slicer", SLICERS)
async def test_events_are_the_same_however_the_bytes_are_cut(slicer: str) -> None:
    answer = STREAM_HEAD + chunked(
        b"event: start\ndata: {}\n\nevent: log\nda",
        b'ta: {"a": 1}\n\n',
        b":\n\n",
        b"event: completed\ndata: [\ndata: ]\n\n",
    )
    async with answering(SLICERS[slicer](answer)) as connection, asyncio.timeout(5):
        for _ in range(2):
            assert await connection.request("POST", "/predictions", b"{}") == 200
            assert await all_events(connection) == [
                ServerEvent("start", b"{}"),
                ServerEvent("log", b'{"a": 1}'),
                ServerEvent("completed", b"[\n]"),
            ]
            assert connection.is_usable


async def test_a_body_is_read_by_its_length() -> None:
    answer = b"HTTP/1.1 409 Conflict\r\nContent-Length: 5\r\n\r\nabcde"
    async with answering(SLICERS["in sevens"](answer)) as connection:
        assert await connection.request("GET", "/") == 409
        assert not connection.is_usable
        assert await connection.read_body() == b"abcde"
        assert connection.is_usable


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 20000\r\n\r\n", AnswerTooLarge),
        (b"HTTP/1.1 200 OK\r\n\r\n", ProtocolError),
    ],
)
async def test_a_body_without_a_bound_is_refused(answer: bytes, error: type[Exception]) -> None:
    async with answering([answer]) as connection:
        await connection.request("GET", "/")
        with pytest.raises(error):
            await connection.read_body()


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (b"ffffff\r\n", AnswerTooLarge),
        (chunked(b"x" * 6000, b"x" * 6000), AnswerTooLarge),
        (b"no size\r\n", ProtocolError),
        (b"0" * 100, ProtocolError),
    ],
)
async def test_a_stream_that_breaks_the_rules_is_given_up(
    stream: bytes, error: type[Exception]
) -> None:
    async with answering([STREAM_HEAD + stream]) as connection, asyncio.timeout(5):
        await connection.request("POST", "/")
        with pytest.raises(error):
            await connection.read_events()


@pytest.mark.parametrize("answer", [[b"SSH-2.0-x\r\n\r\n"], [b"x" * 20_000], []])
async def test_a_peer_that_is_no_http_server_is_an_error(answer: list[bytes]) -> None:
    async with answering(answer) as connection, asyncio.timeout(5):
        with pytest.raises(ProtocolError):
            await connection.request("GET", "/")
