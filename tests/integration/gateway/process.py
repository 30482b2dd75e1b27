"""A gateway process between the test and doubles of the services behind it."""

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
import httpx
from reprise.scheduler.v1 import prediction_pb2

from services.chassis import channels
from tests.doubles.billing import FakeBilling
from tests.doubles.scheduler import FakeScheduler
from tests.doubles.storage import FakeStorage
from tests.servers import NatsServer, free_port, wait_for_port

TOKEN = "rp_" + "t" * 40
MESH_KEY = "key of the test's mesh"
SIGNING_KEY = "signing key of the test"
T = TypeVar("T")


class StreamingScheduler(FakeScheduler):
    """A scheduler that names the owner of a stream, and can lose its connection in between."""

    def __init__(self) -> None:
        super().__init__()
        self.is_cut_after: int | None = None
        self.seen_last_event_ids: list[str] = []
        self.gate: asyncio.Event | None = None

    async def StreamPrediction(
        self, request: prediction_pb2.StreamPredictionRequest, context: Any
    ) -> AsyncIterator[prediction_pb2.StreamPredictionResponse]:
        self.seen_last_event_ids.append(request.last_event_id)
        owner = self.owners.get(request.stream_token.removeprefix("token-"), "")
        if owner:
            await context.send_initial_metadata(((channels.ACCOUNT, owner),))
        count = 0
        async for event in super().StreamPrediction(request, context):
            if self.is_cut_after == count:
                self.is_cut_after = None
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            if self.gate is not None and event.event == "done":
                await self.gate.wait()
            yield event
            count += 1


class Doubles:
    """The neighbours on one port, in a loop and a thread of their own."""

    def __init__(self) -> None:
        self.scheduler = StreamingScheduler()
        self.storage = FakeStorage()
        self.billing = FakeBilling()
        self.port = free_port()
        self._loop = asyncio.new_event_loop()
        self._server: grpc.aio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the doubles' loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=20)

    def start(self) -> None:
        self.run(self._start())

    def stop(self) -> None:
        assert self._server is not None
        self.run(self._server.stop(0))

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", channels.MESSAGE_SIZE_MAX),
                ("grpc.so_reuseport", 0),
            ]
        )
        for double in (self.scheduler, self.storage, self.billing):
            double.add_to(self._server)
        assert self._server.add_insecure_port(f"127.0.0.1:{self.port}") == self.port
        await self._server.start()


@dataclass(slots=True)
class GatewayProcess:
    """`python -m services.gateway` on free ports."""

    folder: Path
    doubles: Doubles
    nats: NatsServer
    extra: dict[str, str] = field(default_factory=dict)
    http_port: int = field(default_factory=free_port)
    grpc_port: int = field(default_factory=free_port)
    own_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        scheme = "https" if "TLS_CERT" in self.extra else "http"
        return f"{scheme}://127.0.0.1:{self.http_port}"

    @property
    def log(self) -> str:
        return (self.folder / "gateway.log").read_text()

    async def start(self) -> None:
        doubles = f"127.0.0.1:{self.doubles.port}"
        settings = {
            "LISTEN": f"127.0.0.1:{self.own_port}",
            "MESH_KEY": MESH_KEY,
            "NATS_URL": self.nats.url,
            "HTTP_PORT": str(self.http_port),
            "GRPC_PUBLIC_LISTEN": f"127.0.0.1:{self.grpc_port}",
            "DATABASE_URL": f"sqlite:///{self.folder / 'gateway.sqlite'}",
            "SCHEDULER_TARGET": doubles,
            "STORAGE_TARGET": doubles,
            "BILLING_TARGET": doubles,
            "SIGNING_KEY": SIGNING_KEY,
            "BOOTSTRAP_TOKEN": TOKEN,
            "STOP_GRACE_S": "1",
        } | self.extra
        environment = os.environ | {f"REPRISE_GATEWAY_{k}": v for k, v in settings.items()}
        with (self.folder / "gateway.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.gateway"], env=environment, stderr=log
            )
        for port in (self.http_port, self.grpc_port, self.own_port):
            await self._wait_for(port)

    async def _wait_for(self, port: int) -> None:
        for _ in range(300):
            assert self.process is not None
            assert self.process.poll() is None, self.log
            with contextlib.suppress(TimeoutError):
                return await wait_for_port(port, timeout_s=0.1)
        raise AssertionError(f"nothing listens: {self.log}")

    def stop(self) -> int:
        """Asks the process to end and returns its exit status."""
        assert self.process is not None
        self.process.terminate()
        status = self.process.wait(timeout=20)
        self.process = None
        return status

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def http(self, token: str = TOKEN) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=20, trust_env=False)
