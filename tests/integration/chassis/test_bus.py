"""The bus against a real NATS server that is killed and whose store is deleted."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from reprise.inference.v1 import events_pb2 as inference_events
from reprise.scheduler.v1 import events_pb2

from services.chassis.bus import Bus
from services.chassis.errors import Unavailable
from services.chassis.settings import ServiceSettings
from tests.servers import NatsServer, nats_server

WAIT_S = 10


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path / "nats") as server:
        yield server


@pytest.fixture
async def bus(nats: NatsServer) -> AsyncIterator[Bus]:
    bus = await Bus.connect(ServiceSettings(mesh_key="k", nats_url=nats.url), "test")
    yield bus
    await bus.close()


async def test_a_directed_event_reaches_only_its_receiver(bus: Bus) -> None:
    received: asyncio.Queue[str] = asyncio.Queue()

    async def one(event: events_pb2.LeaseRevoked) -> None:
        received.put_nowait(f"one:{event.prediction_id}")

    async def two(event: events_pb2.LeaseRevoked) -> None:
        received.put_nowait(f"two:{event.prediction_id}")

    await bus.consume(events_pb2.LeaseRevoked, one, to="w1")
    await bus.consume(events_pb2.LeaseRevoked, two, to="w2")
    await bus.publish(events_pb2.LeaseRevoked(prediction_id="a"), to="w1")
    await bus.publish(events_pb2.LeaseRevoked(prediction_id="b"), to="w2")
    async with asyncio.timeout(WAIT_S):
        assert {await received.get(), await received.get()} == {"one:a", "two:b"}
    assert received.empty()


async def test_a_request_is_answered_only_after_its_handler_returned(bus: Bus) -> None:
    gate = asyncio.Event()

    async def handle(_: inference_events.RunsReported) -> None:
        await gate.wait()

    await bus.consume(inference_events.RunsReported, handle)
    request = asyncio.create_task(bus.request(inference_events.RunsReported(), WAIT_S))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(request), 0.1)
    gate.set()
    await request


async def test_a_request_that_nobody_handles_is_unavailable(bus: Bus) -> None:
    with pytest.raises(Unavailable, match="nobody acknowledged"):
        await bus.request(inference_events.RunsReported(), 0.2)


async def test_a_durable_event_is_delivered_again_until_its_handler_succeeds(bus: Bus) -> None:
    attempts: list[str] = []
    done = asyncio.Event()

    async def handle(event: events_pb2.PredictionsCompleted) -> None:
        attempts.append(event.event_id)
        if len(attempts) == 1:
            raise RuntimeError("not yet")
        done.set()

    await bus.consume(events_pb2.PredictionsCompleted, handle, durable="counter")
    await bus.publish(events_pb2.PredictionsCompleted(event_id="e1"))
    async with asyncio.timeout(WAIT_S):
        await done.wait()
    assert attempts == ["e1", "e1"]


async def test_the_bus_works_again_after_its_server_lost_everything(
    bus: Bus, nats: NatsServer
) -> None:
    received: asyncio.Queue[str] = asyncio.Queue()

    async def handle(event: events_pb2.PredictionsCompleted) -> None:
        received.put_nowait(event.event_id)

    reconnected = asyncio.Event()

    async def note() -> None:
        reconnected.set()

    bus.on_reconnect(note)
    await bus.consume(events_pb2.PredictionsCompleted, handle, durable="counter")
    await bus.publish(events_pb2.PredictionsCompleted(event_id="before"))
    async with asyncio.timeout(WAIT_S):
        assert await received.get() == "before"

    nats.kill()
    shutil.rmtree(nats.folder)
    await nats.start()

    async with asyncio.timeout(WAIT_S * 2):
        await reconnected.wait()
        await bus.publish(events_pb2.PredictionsCompleted(event_id="after"))
        assert await received.get() == "after"
