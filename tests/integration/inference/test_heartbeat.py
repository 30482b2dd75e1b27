"""Heartbeats over a real NATS server while the event loop cannot move."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from reprise.inference.v1 import events_pb2

from services.chassis.bus import Bus
from services.chassis.settings import ServiceSettings
from services.inference.heartbeat import Heartbeat, WorkerIdentity, WorkerSnapshot
from tests.servers import NatsServer, nats_server

WAIT_S = 10.0


class Listener:
    """Hears in a thread of its own, since the test's loop will be blocked."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.beats = threading.Semaphore(0)
        self.stops = threading.Semaphore(0)
        self.last: events_pb2.WorkerReported | None = None
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._listens = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Listener":
        self._thread.start()
        assert self._listens.wait(WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def _run(self) -> None:
        self._loop.run_until_complete(self._listen())
        self._loop.close()

    async def _listen(self) -> None:
        bus = await Bus.connect(self._settings, "listener")
        await bus.consume(events_pb2.WorkerReported, self._on_beat)
        await bus.consume(events_pb2.WorkerStopped, self._on_stop)
        self._listens.set()
        await self._end.wait()
        await bus.close()

    async def _on_beat(self, event: events_pb2.WorkerReported) -> None:
        self.last = event
        self.beats.release()

    async def _on_stop(self, event: events_pb2.WorkerStopped) -> None:
        self.stops.release()


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path / "nats") as server:
        yield server


def snapshot() -> WorkerSnapshot:
    identity = WorkerIdentity(worker_id="w", host_id="h", hardware="cpu", isolation="none")
    return WorkerSnapshot(identity, 3)


async def test_a_blocked_event_loop_does_not_stop_the_heartbeat(nats: NatsServer) -> None:
    settings = ServiceSettings(mesh_key="k", nats_url=nats.url)
    state = snapshot()
    state.hold("p", 2)
    heartbeat = Heartbeat(settings, state, interval_s=0.05, stall_limit_s=60)
    with Listener(settings) as listener:
        task = asyncio.create_task(heartbeat.run())
        await asyncio.to_thread(listener.beats.acquire, timeout=WAIT_S)
        for _ in range(3):
            # This blocks the loop of the worker, not the one of the heartbeat.
            assert listener.beats.acquire(timeout=WAIT_S)
        assert listener.last is not None
        assert listener.last.leases[0] == events_pb2.HeldLease(prediction_id="p", attempt=2)
        task.cancel()
        await asyncio.wait({task})
        assert listener.stops.acquire(timeout=WAIT_S), "the last word is that the worker stopped"


async def test_a_loop_that_stands_still_for_too_long_loses_the_heartbeat(
    nats: NatsServer,
) -> None:
    settings = ServiceSettings(mesh_key="k", nats_url=nats.url)
    state = snapshot()
    heartbeat = Heartbeat(settings, state, interval_s=0.02, stall_limit_s=0.3)
    with Listener(settings) as listener:
        state.touch()
        task = asyncio.create_task(heartbeat.run())
        await asyncio.to_thread(listener.beats.acquire, timeout=WAIT_S)
        while listener.beats.acquire(timeout=0.5):
            pass
        state.touch()
        assert listener.beats.acquire(timeout=WAIT_S), "it beats again once the loop moves"
        task.cancel()
        await asyncio.wait({task})


async def test_a_change_is_told_at_once(nats: NatsServer) -> None:
    settings = ServiceSettings(mesh_key="k", nats_url=nats.url)
    state = snapshot()
    heartbeat = Heartbeat(settings, state, interval_s=600, stall_limit_s=600)
    with Listener(settings) as listener:
        task = asyncio.create_task(heartbeat.run())
        await asyncio.to_thread(listener.beats.acquire, timeout=WAIT_S)
        state.set_replicas([events_pb2.ReplicaReport(version_id="v")])
        heartbeat.poke()
        await asyncio.to_thread(listener.beats.acquire, timeout=WAIT_S)
        assert listener.last is not None
        assert [replica.version_id for replica in listener.last.replicas] == ["v"]
        task.cancel()
        await asyncio.wait({task})
