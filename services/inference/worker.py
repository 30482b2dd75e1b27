"""The worker: takes leases, runs them, reports, and goes away in good order."""

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from reprise.scheduler.v1 import events_pb2 as scheduler_events_pb2

from services.chassis.errors import RepriseError
from services.inference.execution import Bench, Run, StopReason
from services.inference.heartbeat import Heartbeat, WorkerSnapshot

log = logging.getLogger(__name__)

_ENDED_KEPT_COUNT = 20_000
_TICK_S = 1.0


class Background(Protocol):
    """A part with a life of its own."""

    async def run(self) -> None: ...


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    lease_count_max: int
    drain_grace_s: float


class Worker:
    """Each attempt is run once, however often its lease arrives."""

    def __init__(
        self,
        bench: Bench,
        *,
        snapshot: WorkerSnapshot,
        heartbeat: Heartbeat,
        limits: WorkerLimits,
    ) -> None:
        self._bench = bench
        self._snapshot = snapshot
        self._heartbeat = heartbeat
        self._limits = limits
        self._runs: dict[str, Run] = {}
        # The newest attempt of predictions that this worker is done with.
        self._ended: OrderedDict[str, int] = OrderedDict()
        self._tasks: asyncio.TaskGroup | None = None
        self._is_draining = False
        self._nothing_held = asyncio.Event()
        self._nothing_held.set()

    async def on_leases_granted(self, event: scheduler_events_pb2.LeasesGranted) -> None:
        for lease in event.leases:
            self._take(lease)

    async def on_lease_revoked(self, event: scheduler_events_pb2.LeaseRevoked) -> None:
        run = self._runs.get(event.prediction_id)
        if run is not None and run.attempt <= event.attempt:
            run.stop(StopReason.REVOKED)
        else:
            # It may have overtaken its lease.
            self._remember(event.prediction_id, event.attempt)

    async def on_replica_requested(self, event: scheduler_events_pb2.ReplicaRequested) -> None:
        if self._is_draining:
            return
        try:
            version = await self._bench.versions.get(event.version_id, event.account_id)
        except RepriseError as error:
            log.warning(
                "replica of an unknown version requested",
                extra={
                    "event": "replica_version_unknown",
                    "version_id": event.version_id,
                    "error": error.message,
                },
            )
            return
        self._bench.pool.request(version)

    def on_replicas_changed(self) -> None:
        if not self._is_draining:
            self._snapshot.set_replicas(self._bench.pool.reports())
            self._heartbeat.poke()

    async def run(self) -> None:
        """Until cancelled; then running predictions may end within the grace."""
        async with asyncio.TaskGroup() as parts:
            for part in (self._bench.pool, self._bench.reporter, self._heartbeat):
                parts.create_task(_part(part))
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tick = tasks.create_task(self._tick())
                try:
                    await asyncio.get_running_loop().create_future()
                except asyncio.CancelledError:
                    await self._drain()
                    raise
                finally:
                    tick.cancel()

    async def _tick(self) -> None:
        while True:
            self._snapshot.touch()
            self._bench.pool.check()
            await asyncio.sleep(_TICK_S)

    def _take(self, lease: scheduler_events_pb2.Lease) -> None:
        if self._is_draining or self._tasks is None:
            return
        held = self._runs.get(lease.prediction_id)
        if held is not None and held.attempt >= lease.attempt:
            return
        if self._ended.get(lease.prediction_id, 0) >= lease.attempt:
            return
        if held is not None:
            # The scheduler gave up on the older attempt: whatever it still says would be refused.
            held.abandon()
        elif len(self._runs) >= self._limits.lease_count_max:
            return
        run = Run(lease, self._bench, self._on_reported)
        self._runs[lease.prediction_id] = run
        self._nothing_held.clear()
        self._snapshot.hold(lease.prediction_id, lease.attempt)
        run.start(self._tasks)

    def _on_reported(self, run: Run) -> None:
        """The run's end is known to the scheduler: the lease is gone."""
        self._remember(run.prediction_id, run.attempt)
        self._release(run)

    def _release(self, run: Run) -> None:
        if self._runs.get(run.prediction_id) is run:
            del self._runs[run.prediction_id]
        self._snapshot.let_go(run.prediction_id, run.attempt)
        if not self._runs:
            self._nothing_held.set()

    def _remember(self, prediction_id: str, attempt: int) -> None:
        self._ended[prediction_id] = max(attempt, self._ended.get(prediction_id, 0))
        self._ended.move_to_end(prediction_id)
        while len(self._ended) > _ENDED_KEPT_COUNT:
            self._ended.popitem(last=False)

    async def _drain(self) -> None:
        log.info("worker drains", extra={"event": "worker_drains", "lease_count": len(self._runs)})
        self._is_draining = True
        self._snapshot.take_no_more()
        self._heartbeat.poke()
        for run in [run for run in self._runs.values() if not run.has_entered_model]:
            run.abandon()
            self._release(run)
        try:
            async with asyncio.timeout(self._limits.drain_grace_s):
                await self._nothing_held.wait()
        except TimeoutError:
            for run in list(self._runs.values()):
                run.abandon()


async def _part(part: Background) -> None:
    await part.run()
    raise RuntimeError(f"{type(part).__name__} ended")
