"""Tells the mesh which predictions ended: after the commit, batched, best effort."""

import asyncio
import logging
from collections import deque
from uuid import uuid4

from reprise.scheduler.v1 import events_pb2

from services.chassis.bus import Bus
from services.chassis.clock import timestamp
from services.chassis.errors import Unavailable
from services.scheduler.record import PredictionRecord
from services.scheduler.settings import SchedulerSettings

log = logging.getLogger(__name__)

_BATCH_MAX = 512
_RETRY_S = 0.5


class CompletedPublisher:
    """Keeps ended predictions until the bus has taken them, a bounded number of them."""

    def __init__(self, settings: SchedulerSettings, bus: Bus) -> None:
        self._settings = settings
        self._bus = bus
        self._waiting: deque[PredictionRecord] = deque(maxlen=settings.completed_backlog_size_max)
        self._added = asyncio.Event()

    def add(self, record: PredictionRecord) -> None:
        self._waiting.append(record)
        self._added.set()

    async def run(self) -> None:
        """Publishes what was added, for ever."""
        while True:
            await self._added.wait()
            await asyncio.sleep(self._settings.completed_delay_s)
            self._added.clear()
            while self._waiting:
                count = min(len(self._waiting), _BATCH_MAX)
                batch = [self._waiting.popleft() for _ in range(count)]
                await self._publish(batch)

    async def _publish(self, batch: list[PredictionRecord]) -> None:
        event = events_pb2.PredictionsCompleted(
            event_id=uuid4().hex, predictions=[_completed(record) for record in batch]
        )
        while True:
            try:
                await self._bus.publish(event)
            except Unavailable as error:
                log.warning(
                    "ended predictions not published yet",
                    extra={"event": "completed_not_published", "why": str(error)},
                )
                await asyncio.sleep(_RETRY_S)
            else:
                return


def _completed(record: PredictionRecord) -> events_pb2.CompletedPrediction:
    return events_pb2.CompletedPrediction(
        prediction_id=record.id,
        account_id=record.account_id,
        model=record.model,
        version=record.version_id,
        status=record.status,
        completed_at=timestamp(record.completed_at or 0),
    )
