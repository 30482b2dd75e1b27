"""Events that the scheduler consumes."""

from reprise.inference.v1 import events_pb2

from services.chassis.bus import Bus
from services.scheduler.runs import Runs
from services.scheduler.supervision import Supervision


class Subscriber:
    """What workers say."""

    def __init__(self, supervision: Supervision, runs: Runs) -> None:
        self._supervision = supervision
        self._runs = runs

    async def start(self, bus: Bus) -> None:
        await bus.consume(events_pb2.WorkerReported, self._supervision.worker_reported)
        await bus.consume(events_pb2.WorkerStopped, self._stopped)
        await bus.consume(events_pb2.RunsReported, self._reported)

    async def _stopped(self, event: events_pb2.WorkerStopped) -> None:
        await self._supervision.worker_stopped(event.worker_id)

    async def _reported(self, event: events_pb2.RunsReported) -> None:
        await self._runs.report(event.worker_id, event.events)
