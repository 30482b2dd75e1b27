"""Event streams over HTTP: exact bytes, resume, a service that restarts, a caller that goes."""

import asyncio
import json
from collections.abc import Iterator

import httpx

from tests.integration.gateway.process import GatewayProcess

VERSION = "0" * 64


def _create(http: httpx.Client) -> str:
    url: str = http.post("/v1/predictions", json={"version": VERSION}).json()["urls"]["stream"]
    return url


def test_the_bytes_of_a_stream_are_as_replicates(
    http: httpx.Client, gateway: GatewayProcess
) -> None:
    gateway.doubles.scheduler.stream_items = ("Hello", " wor\nld\r!")
    url = _create(http)
    with gateway.http(token="") as stranger:
        answer = stranger.get(url)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.text == (
        ": hi\n\n"
        "event: output\nid: 1700000000:0\ndata: Hello\n\n"
        "event: output\nid: 1700000000:1\ndata:  wor\ndata: ld\ndata: !\n\n"
        "event: done\nid: 1700000000:2\ndata: {}\n\n"
    )


def test_a_reconnect_gets_only_what_it_has_not_seen(
    http: httpx.Client, gateway: GatewayProcess
) -> None:
    gateway.doubles.scheduler.stream_items = ("a", "b")
    answer = http.get(_create(http), headers={"Last-Event-ID": "1700000000:0"})
    assert "data: a\n" not in answer.text
    assert "data: b\n" in answer.text


def test_a_lost_connection_to_the_scheduler_is_invisible(
    http: httpx.Client, gateway: GatewayProcess
) -> None:
    scheduler = gateway.doubles.scheduler
    scheduler.stream_items = ("a", "b", "c")
    scheduler.is_cut_after = 2
    answer = http.get(_create(http))
    assert [line for line in answer.text.splitlines() if line.startswith("data")] == [
        "data: a",
        "data: b",
        "data: c",
        "data: {}",
    ]
    # gRPC's own retry cannot resume a stream: the gateway asks for what comes after b.
    assert scheduler.seen_last_event_ids == ["", "1700000000:1"]


def test_an_unknown_stream_is_404(gateway: GatewayProcess) -> None:
    with gateway.http(token="") as http:
        answer = http.get("/v1/streams/unknown")
    assert (answer.status_code, answer.json()["title"]) == (404, "Not found")


def test_a_file_in_a_stream_is_given_in_its_owners_name(
    http: httpx.Client, gateway: GatewayProcess
) -> None:
    file = gateway.doubles.storage.files.put(b"GIF", content_type="image/gif")
    gateway.doubles.scheduler.stream_items = (f"reprise-file:{file.id}",)
    url = _create(http).replace("/v1/streams/", "/v1/files/streams/")
    assert "data: data:image/gif;base64,R0lG\n" in http.get(url).text


def test_chunks_come_as_they_are_made(http: httpx.Client, gateway: GatewayProcess) -> None:
    scheduler = gateway.doubles.scheduler
    scheduler.stream_items = ("now",)
    url = _create(http)
    scheduler.gate = asyncio.Event()
    with http.stream("GET", url) as answer:
        lines: Iterator[str] = answer.iter_lines()
        assert "data: now" in [next(lines) for _ in range(5)]
        gate = scheduler.gate
        gateway.doubles.run(_set(gate))
        assert "data: {}" in list(lines)


def test_browsers_of_other_origins_may_read_streams(gateway: GatewayProcess) -> None:
    with gateway.http(token="") as http:
        allowed = http.options("/v1/streams/abc")
        refused = http.options("/v1/account")
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (204, "*")
    assert refused.status_code == 405
    assert json.loads(refused.text)["status"] == 405


async def _set(gate: asyncio.Event) -> None:
    gate.set()
