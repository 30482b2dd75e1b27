"""Real servers for tests: each on a free port in a folder of its own, ended by its pid."""

import asyncio
import contextlib
import itertools
import os
import random
import socket
import subprocess
import sysconfig
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path


def _ports() -> Iterator[int]:
    # Below the kernel's range for outgoing connections, in a part for this test process alone,
    # one after the other: what was given out may not be bound yet.
    index = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 10_000 + (index % 8) * 250
    start = random.SystemRandom().randrange(250)
    for count in itertools.count(start):
        yield first + count % 250


_PORTS = _ports()


def free_port() -> int:
    """A TCP port that nobody listens on now, and that no other test process takes."""
    for port in _PORTS:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("the ports never end")


@dataclass(slots=True)
class NatsServer:
    """A NATS server with JetStream that a test may kill and start again on its port."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> None:
        config = self.folder.with_suffix(".conf")
        # The same payload limit as a mesh has.
        config.write_text(
            f'listen: "127.0.0.1:{self.port}"\nmax_payload: 64MB\n'
            f'jetstream {{ store_dir: "{self.folder}" }}\n'
        )
        command = [Path(sysconfig.get_path("scripts"), "nats-server"), "--config", config]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        await wait_for_port(self.port)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


async def wait_for_port(port: int, timeout_s: float = 10) -> None:
    """Returns once somebody listens on the port."""
    async with asyncio.timeout(timeout_s):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.01)
                continue
            writer.close()
            return


@contextlib.asynccontextmanager
async def nats_server(folder: Path) -> AsyncIterator[NatsServer]:
    """A running NATS server; it is gone at the end."""
    server = NatsServer(folder=folder, port=free_port())
    await server.start()
    try:
        yield server
    finally:
        server.kill()
