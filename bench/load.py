"""A light HTTP load generator: closed-loop clients on keep-alive connections over loopback.

The servers share the machine with it, so requests are serialised once and answers parsed barely.
"""

import asyncio
import gc
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

SUCCEEDED = re.compile(rb'"status": ?"succeeded"')
RETRY_DELAY_S = 0.001
RECONNECT_DELAY_S = 0.01
# Clients whose last request is not answered so long after the end of the window are cut off.
DRAIN_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 5.0
SAMPLE_LENGTH_MAX = 300
ERROR_KIND_COUNT_MAX = 20


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send what; an answer without `expected_status` and `expected_body` is an error."""

    host: str
    port: int
    # One for each client, in turn.
    requests: Sequence[bytes]
    expected_status: int
    expected_body: re.Pattern[bytes]
    # Sent again after a millisecond, as part of the same request.
    retried_status: int = 0


@dataclass(slots=True)
class Load:
    """What one window of load came to."""

    concurrency: int
    window_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    # All good answers, those before and after the window too.
    answer_count: int = 0
    retry_count: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    bodies: list[bytes] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        return len(self.latencies_s) / self.window_s if self.window_s else 0.0

    @property
    def error_count(self) -> int:
        return self.errors.total()

    def latency_ms(self, quantile: float) -> float:
        """Nearest-rank quantile; not a number where nothing was answered."""
        if not self.latencies_s:
            return float("nan")
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))] * 1000


def http_request(method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """An HTTP/1.1 request as it goes over the wire."""
    fields = {"Host": "127.0.0.1", "Content-Length": str(len(body)), **headers}
    if body:
        fields["Content-Type"] = "application/json"
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


async def run_for(
    target: Target, *, concurrency: int, seconds: float, warmup_s: float = 0.3
) -> Load:
    """Keeps `concurrency` requests in flight; counts answers that come within the window."""
    run = _Run(target, Load(concurrency))
    async with _Clients(run) as clients:
        clients.start()
        await asyncio.sleep(warmup_s)
        started_at = run.open_window()
        await asyncio.sleep(seconds)
        run.load.window_s = time.perf_counter() - started_at
        run.close_window()
        await clients.drained()
    return run.load


async def run_count(target: Target, *, concurrency: int, count: int, timeout_s: float) -> Load:
    """Sends `count` requests and keeps the bodies of the answers."""
    run = _Run(target, Load(concurrency), remaining=count, is_keeping_bodies=True)
    async with _Clients(run) as clients:
        started_at = run.open_window()
        clients.start()
        try:
            async with asyncio.timeout(timeout_s):
                await clients.all_idle.wait()
        except TimeoutError:
            run.close_window()
            await clients.drained()
        run.load.window_s = time.perf_counter() - started_at
    return run.load


class _Run:
    """What the clients of one run share."""

    def __init__(
        self,
        target: Target,
        load: Load,
        *,
        remaining: int | None = None,
        is_keeping_bodies: bool = False,
    ) -> None:
        self.target = target
        self.load = load
        self.is_recording = False
        self._is_over = False
        self._remaining = remaining
        self._is_keeping_bodies = is_keeping_bodies

    def open_window(self) -> float:
        self.is_recording = True
        return time.perf_counter()

    def close_window(self) -> None:
        self.is_recording = False
        self._is_over = True

    def may_send(self) -> bool:
        """Whether a client may start one more request; takes it from the count."""
        if self._is_over or self._remaining == 0:
            return False
        if self._remaining is not None:
            self._remaining -= 1
        return True

    def answered(self, status: int, body: bytes, latency_s: float) -> None:
        target = self.target
        if status != target.expected_status or not target.expected_body.search(body):
            sample = body[:SAMPLE_LENGTH_MAX].decode(errors="replace")
            self.failed(f"{status}: {sample}")
            return
        self.load.answer_count += 1
        if not self.is_recording:
            return
        self.load.latencies_s.append(latency_s)
        if self._is_keeping_bodies:
            self.load.bodies.append(body)

    def failed(self, reason: str) -> None:
        # Outside of the window too: no failure goes unseen.
        if len(self.load.errors) >= ERROR_KIND_COUNT_MAX and reason not in self.load.errors:
            reason = "others"
        self.load.errors[reason] += 1


class _Clients:
    """The clients of one run, connected before the first request and closed at the end."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._clients: list[_Client] = []
        self.all_idle = asyncio.Event()

    async def __aenter__(self) -> "_Clients":
        requests = self._run.target.requests
        for number in range(self._run.load.concurrency):
            client = _Client(self._run, requests[number % len(requests)], self._check_idle)
            await client.connect()
            self._clients.append(client)
        gc.collect()
        gc.disable()
        return self

    async def __aexit__(self, *_: object) -> None:
        gc.enable()
        for client in self._clients:
            client.close()

    def start(self) -> None:
        for client in self._clients:
            client.send_next()

    async def drained(self) -> None:
        self._check_idle()
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                await self.all_idle.wait()
        except TimeoutError:
            for client in self._clients:
                if not client.is_idle:
                    self._run.failed(f"no answer within {DRAIN_TIMEOUT_S:.0f} s")

    def _check_idle(self) -> None:
        if all(client.is_idle for client in self._clients):
            self.all_idle.set()


class _Client(asyncio.Protocol):
    """One connection with one request in flight."""

    def __init__(self, run: _Run, request: bytes, on_idle: Callable[[], None]) -> None:
        self._run = run
        self._request = request
        self._on_idle = on_idle
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reconnecting: asyncio.Task[None] | None = None
        self._buffer = b""
        self._sent_at = 0.0
        self._is_closing = False
        self.is_idle = True

    async def connect(self) -> None:
        target = self._run.target
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await self._loop.create_connection(lambda: self, target.host, target.port)

    def close(self) -> None:
        self._is_closing = True
        if self._reconnecting is not None:
            self._reconnecting.cancel()
        if self._transport is not None:
            self._transport.abort()

    def send_next(self) -> None:
        if not self._run.may_send():
            self.is_idle = True
            self._on_idle()
            return
        self.is_idle = False
        self._sent_at = time.perf_counter()
        self._send()

    def _send(self) -> None:
        # A lost connection is being opened again and sends by itself.
        if self._transport is not None and not self._is_closing:
            self._transport.write(self._request)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        answer = parse_answer(self._buffer)
        if answer is None:
            return
        self._buffer = b""
        run = self._run
        if answer.status == run.target.retried_status:
            run.load.retry_count += run.is_recording
            self._loop.call_later(RETRY_DELAY_S, self._send)
            return
        run.answered(answer.status, answer.body, time.perf_counter() - self._sent_at)
        self.send_next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._buffer = b""
        if self._is_closing:
            return
        if not self.is_idle:
            self._run.failed(f"connection lost: {exc or 'closed by the server'}")
        self._reconnecting = self._loop.create_task(self._reconnect())

    async def _reconnect(self) -> None:
        await asyncio.sleep(RECONNECT_DELAY_S)
        try:
            await self.connect()
        except (OSError, TimeoutError) as error:
            self._run.failed(f"cannot connect: {error}")
            self.is_idle = True
            self._on_idle()
            return
        if not self.is_idle:
            self.send_next()


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP answer."""

    status: int
    body: bytes


def parse_answer(data: bytes) -> Answer | None:
    """The one answer in `data`; None while it is not whole."""
    head_end = data.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    status = int(data[9:12])
    head = data[:head_end].lower() + b"\r\n"
    start = head.find(b"\r\ncontent-length:")
    if start >= 0:
        length = int(head[start + 17 : head.find(b"\r\n", start + 17)])
        body = data[head_end + 4 :]
        return Answer(status, body) if len(body) >= length else None
    if b"\r\ntransfer-encoding: chunked" in head:
        return Answer(status, data[head_end + 4 :]) if data.endswith(b"\r\n0\r\n\r\n") else None
    return Answer(status, b"")
