"""Reports of workers, and their silence: leases healed, voided, replicas asked for again."""

import asyncio
import logging
import time
from collections import deque

from reprise.inference.v1 import events_pb2

from services.chassis.bus import Bus
from services.chassis.errors import Unavailable
from services.scheduler import metrics
from services.scheduler.backlog import Backlog
from services.scheduler.dispatch import Dispatcher
from services.scheduler.fleet import Fleet, Worker
from services.scheduler.leases import LeaseKey, reconcile
from services.scheduler.live import LivePredictions
from services.scheduler.runs import Runs
from services.scheduler.settings import SchedulerSettings
from services.scheduler.settlement import Settlements

log = logging.getLogger(__name__)

_STALL_S = 1.0
_REPLACED_MAX = 1000


class Supervision:
    """Keeps the books about workers true to what the workers say."""

    def __init__(
        self,
        *,
        settings: SchedulerSettings,
        predictions: LivePredictions,
        backlog: Backlog,
        fleet: Fleet,
        dispatcher: Dispatcher,
        runs: Runs,
        settlements: Settlements,
        bus: Bus,
    ) -> None:
        self._settings = settings
        self._predictions = predictions
        self._backlog = backlog
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._runs = runs
        self._settlements = settlements
        self._bus = bus
        # Since when reports come through without a break (monotonic); None while they do not.
        self._heard_since: float | None = None
        # They never come back, or two processes would take each other's leases for ever.
        self._replaced: deque[str] = deque(maxlen=_REPLACED_MAX)

    async def worker_reported(self, report: events_pb2.WorkerReported) -> None:
        """Takes over a heartbeat and heals what differs."""
        now = time.monotonic()
        if report.worker_id in self._replaced:
            await self._silence(report)
            return
        is_new = report.worker_id not in self._fleet.workers
        worker = self._fleet.adopt(report.worker_id, now)
        worker.update(report, now)
        if is_new:
            log.info("worker connected", extra=_about(worker, "worker_connected"))
        for predecessor in self._fleet.predecessors(worker):
            self._replaced.append(predecessor.worker_id)
            await self._lose_worker(predecessor, "replaced")
        held = [LeaseKey(lease.prediction_id, lease.attempt) for lease in report.leases]
        await self._reconcile(worker, held, now)
        await self._settle_replicas(worker, now)
        self._dispatcher.kick()

    async def _silence(self, report: events_pb2.WorkerReported) -> None:
        """A process that another one has replaced woke up: its runs must stop."""
        for lease in report.leases:
            key = LeaseKey(lease.prediction_id, lease.attempt)
            await self._dispatcher.send_revocation(report.worker_id, key, "replaced")

    async def worker_stopped(self, worker_id: str) -> None:
        """A worker left in good order."""
        worker = self._fleet.workers.get(worker_id)
        if worker is not None:
            await self._lose_worker(worker, "stopped")

    async def run(self) -> None:
        """Looks for silent workers and overdue runs."""
        period_s = min(1.0, self._settings.heartbeat_timeout_s / 4)
        while True:
            before = time.monotonic()
            await asyncio.sleep(period_s)
            if time.monotonic() - before > period_s + _STALL_S:
                # This process stood still: what workers said meanwhile is yet to be read.
                self._heard_since = None
            await self._listen(period_s)
            for worker in self._silent_workers():
                await self._lose_worker(worker, "silent")
            for worker in list(self._fleet.workers.values()):
                await self._stop_overdue(worker)
            self._dispatcher.kick()
            metrics.BACKLOG.set(len(self._backlog))
            metrics.OPEN.set(len(self._predictions))
            metrics.WORKERS.set(len(self._fleet.workers))
            metrics.UNSETTLED.set(len(self._settlements))

    async def _listen(self, timeout_s: float) -> None:
        """An empty report to ourselves: while it does not come through, nobody's would."""
        try:
            await self._bus.request(events_pb2.RunsReported(), timeout_s)
        except Unavailable:
            if self._heard_since is not None:
                log.warning("bus is silent", extra={"event": "bus_silent"})
            self._heard_since = None
        else:
            if self._heard_since is None:
                self._heard_since = time.monotonic()

    def _silent_workers(self) -> list[Worker]:
        """Workers whose reports would have come through, and did not."""
        now, timeout_s = time.monotonic(), self._settings.heartbeat_timeout_s
        if self._heard_since is None or now - self._heard_since < timeout_s:
            return []
        return self._fleet.silent(now, timeout_s)

    async def _lose_worker(self, worker: Worker, reason: str) -> None:
        if self._fleet.workers.get(worker.worker_id) is not worker:
            # Lost for another reason while the commit of an earlier loss was awaited.
            return
        del self._fleet.workers[worker.worker_id]
        log.warning("worker lost", extra=_about(worker, "worker_lost") | {"reason": reason})
        await self._runs.lose_leases(list(worker.granted))

    async def _stop_overdue(self, worker: Worker) -> None:
        overdue = self._runs.overdue(worker)
        for key in overdue:
            worker.revoke(key)
            await self._dispatcher.send_revocation(worker.worker_id, key, "overdue")
        if overdue:
            await self._runs.lose_leases(overdue)

    async def _reconcile(self, worker: Worker, held: list[LeaseKey], now: float) -> None:
        result = reconcile(
            granted=worker.granted,
            revoked=worker.revoked,
            held=held,
            now=now,
            resend_after_s=self._settings.lease_resend_after_s,
        )
        for key in result.freed:
            worker.release(key)
        for key in result.revoke:
            await self._dispatcher.send_revocation(worker.worker_id, key, "not_granted")
        # A worker without a replica of the version has given the lease up, for instance to stop.
        resend = [key for key in result.resend if self._can_run(worker, key)]
        lost = result.lost + [key for key in result.resend if key not in resend]
        if lost:
            for key in lost:
                worker.release(key)
            await self._runs.lose_leases(lost)
        await self._resend(worker, resend, now)

    def _can_run(self, worker: Worker, key: LeaseKey) -> bool:
        grant = worker.granted.get(key)
        return grant is not None and worker.is_ready(grant.version_id)

    async def _resend(self, worker: Worker, keys: list[LeaseKey], now: float) -> None:
        records = []
        for key in keys:
            live = self._predictions.get(key.prediction_id)
            grant = worker.granted.get(key)
            if live is None or grant is None:
                continue
            grant.granted_at, grant.missing_since = now, None
            grant.resend_count += 1
            records.append(live.record)
        if records:
            log.info(
                "leases sent again",
                extra=_about(worker, "leases_resent") | {"count": len(records)},
            )
            await self._dispatcher.send_leases(records)

    async def _settle_replicas(self, worker: Worker, now: float) -> None:
        resend_after_s = self._settings.lease_resend_after_s
        for failure in worker.settle_requests(now, resend_after_s):
            log.warning(
                "replica failed",
                extra=_about(worker, "replica_failed") | {"version_id": failure.version_id},
            )
            if not self._fleet.has_ready(failure.version_id):
                await self._runs.fail_waiting(failure.version_id, failure.error)
        for version_id in list(worker.overdue_requests(now, resend_after_s)):
            owner = worker.requests[version_id].owner
            await self._dispatcher.send_replica_request(worker.worker_id, version_id, owner)


def _about(worker: Worker, event: str) -> dict[str, object]:
    return {"event": event, "worker_id": worker.worker_id, "host_id": worker.host_id}
