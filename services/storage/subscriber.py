"""Events that storage listens to: completed predictions count as runs of their models."""

import asyncio

from reprise.scheduler.v1 import events_pb2

from services.chassis.bus import Bus
from services.chassis.clock import Clock
from services.chassis.settings import ServiceSettings
from services.storage.store import Catalogue

DURABLE_NAME = "storage-run-counts"


class Subscriber:
    """Counts each event once, however often it comes."""

    def __init__(self, catalogue: Catalogue, *, clock: Clock) -> None:
        self._catalogue = catalogue
        self._clock = clock

    async def run(self, settings: ServiceSettings) -> None:
        """Listens for ever; storage serves without the bus for as long as there is none."""
        bus = await Bus.connect(settings, "storage")
        try:
            await bus.consume(
                events_pb2.PredictionsCompleted, self.count_runs, durable=DURABLE_NAME
            )
            await asyncio.Event().wait()
        finally:
            await bus.close()

    async def count_runs(self, event: events_pb2.PredictionsCompleted) -> None:
        models = [prediction.model for prediction in event.predictions]
        await self._catalogue.count_runs(event.event_id, models, now=self._clock())
