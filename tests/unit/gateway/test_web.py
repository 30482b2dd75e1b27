"""One HTTP exchange over ASGI, in memory."""

import asyncio
from typing import Any

import pytest

from services.chassis.errors import RepriseError
from services.gateway import problem, web
from services.gateway.web import Disconnected, Exchange


def _exchange(
    messages: list[dict[str, Any]], headers: dict[bytes, bytes] | None = None
) -> tuple[Exchange, list[dict[str, Any]]]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    fields = list((headers or {b"transfer-encoding": b"chunked"}).items())
    scope = {"method": "POST", "path": "/", "query_string": b"", "headers": fields}
    return Exchange(scope, receive, send), sent


def _part(body: bytes, *, is_last: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": not is_last}


async def test_a_body_is_joined_from_its_parts() -> None:
    exchange, _ = _exchange([_part(b"ab"), _part(b""), _part(b"c", is_last=True)])
    assert await exchange.body(3) == b"abc"


async def test_a_body_over_the_limit_is_refused_announced_or_not() -> None:
    for messages, headers in (
        ([_part(b"ab"), _part(b"cd")], {b"transfer-encoding": b"chunked"}),
        ([], {b"content-length": b"4"}),
    ):
        exchange, _ = _exchange(messages, headers)
        with pytest.raises(RepriseError) as caught:
            await exchange.body(3)
        assert problem.status_of(caught.value) == 413
        assert "3 bytes" in caught.value.message


async def test_a_sender_that_stops_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "BODY_PAUSE_MAX_S", 0.01)
    exchange, _ = _exchange([_part(b"a")])
    with pytest.raises(RepriseError) as caught:
        await exchange.body(3)
    assert problem.status_of(caught.value) == 408


async def test_a_caller_that_goes_ends_the_body() -> None:
    exchange, _ = _exchange([_part(b"a"), {"type": "http.disconnect"}])
    with pytest.raises(Disconnected):
        await exchange.body(3)


async def test_a_refusal_is_sent_before_the_rest_is_thrown_away() -> None:
    messages = [_part(b"x" * 10) for _ in range(5)] + [_part(b"", is_last=True)]
    exchange, sent = _exchange(messages)
    await exchange.answer(413, [], b"too large")
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert messages == []


async def test_throwing_away_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "LINGER_S", 0.01)
    exchange, sent = _exchange([])
    await asyncio.wait_for(exchange.answer(413, [], b""), 5)
    assert sent[0]["status"] == 413
