"""The loop from backlog over placement to leases on their way to workers."""

import asyncio
import logging
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Sequence

import nats.errors
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from reprise.scheduler.v1 import events_pb2, prediction_pb2
from reprise.wire.v1 import json_pb2

from services.chassis.bus import Bus
from services.scheduler import metrics, placement
from services.scheduler.backlog import Backlog
from services.scheduler.commits import Commits
from services.scheduler.fleet import Fleet, ReplicaRequest
from services.scheduler.leases import LeaseKey
from services.scheduler.live import LivePrediction, LivePredictions
from services.scheduler.record import PredictionRecord
from services.scheduler.settings import SchedulerSettings
from services.scheduler.store import Changes

log = logging.getLogger(__name__)

# Weight of the newest run in a version's mean run time.
_MEAN_WEIGHT = 0.2
# Characters of input in one message of several leases; a larger input travels alone.
_MESSAGE_INPUT_MAX = 256 * 1024
# Versions whose mean run time is remembered.
_MEAN_COUNT_MAX = 10_000
# Leases written in one commit.
_GRANT_BATCH_MAX = 256

_DETAILS = {
    prediction_pb2.QUEUE_REASON_NO_CAPACITY: "All replicas of this version are busy.",
    prediction_pb2.QUEUE_REASON_COLD_START: "A replica of this version is being started.",
    prediction_pb2.QUEUE_REASON_NO_HARDWARE: "No worker with {} is connected.",
}


class Dispatcher:
    """Gives waiting predictions to replicas with free slots, and asks for missing replicas."""

    def __init__(
        self,
        *,
        settings: SchedulerSettings,
        predictions: LivePredictions,
        backlog: Backlog,
        fleet: Fleet,
        commits: Commits,
        bus: Bus,
    ) -> None:
        self._settings = settings
        self._predictions = predictions
        self._backlog = backlog
        self._fleet = fleet
        self._commits = commits
        self._bus = bus
        self._kicked = asyncio.Event()
        self._mean_run_s: OrderedDict[str, float] = OrderedDict()
        # Versions without any replica, and since when they wait for a place.
        self._starved_since: dict[str, float] = {}

    def kick(self) -> None:
        """Something changed that may let a waiting prediction run."""
        if len(self._backlog):
            self._kicked.set()

    def note_run(self, version_id: str, run_us: int) -> None:
        """Takes a finished run into the version's mean."""
        run_s = run_us / 1e6
        mean = self._mean_run_s.get(version_id, run_s)
        self._mean_run_s[version_id] = mean + _MEAN_WEIGHT * (run_s - mean)
        self._mean_run_s.move_to_end(version_id)
        if len(self._mean_run_s) > _MEAN_COUNT_MAX:
            self._mean_run_s.popitem(last=False)

    def try_lease(self, record: PredictionRecord) -> bool:
        """Leases a prediction that nobody of its version waits before; committed by the caller."""
        return self._backlog.first(record.version_id) is None and self._lease(record)

    def queue_card(self, record: PredictionRecord) -> prediction_pb2.QueueCard | None:
        """Why a prediction waits; None when it does not."""
        position = self._backlog.position(record.version_id, record.id)
        if not position:
            return None
        plan = placement.plan_replica(self._fleet.rooms(record.version_id), record.hardware)
        detail = _DETAILS[plan.reason].format(record.hardware)
        return prediction_pb2.QueueCard(position=position, reason=plan.reason, detail=detail)

    async def run(self) -> None:
        """Dispatches whenever kicked."""
        while True:
            await self._kicked.wait()
            self._kicked.clear()
            leased = self._take_leases()
            if leased:
                await self._commit_leases(leased)
            await self._request_replicas()

    async def send_leases(self, leased: Iterable[PredictionRecord]) -> None:
        """Sends committed leases, batched per worker within the size of a message."""
        by_worker: dict[str, list[PredictionRecord]] = defaultdict(list)
        for record in leased:
            live = self._predictions.get(record.id)
            # Canceled during the commit: the worker need not hear of it.
            if live is not None and not live.is_ending and record.worker_id is not None:
                by_worker[record.worker_id].append(record)
        for worker_id, records in by_worker.items():
            for batch in _batches(records):
                leases = [to_lease(record) for record in batch]
                await self._send(events_pb2.LeasesGranted(leases=leases), worker_id)

    async def send_replica_request(self, worker_id: str, version_id: str, owner: str) -> None:
        request = events_pb2.ReplicaRequested(version_id=version_id, account_id=owner)
        await self._send(request, worker_id)

    async def send_revocation(self, worker_id: str, key: LeaseKey, reason: str) -> None:
        revocation = events_pb2.LeaseRevoked(
            prediction_id=key.prediction_id, attempt=key.attempt, reason=reason
        )
        await self._send(revocation, worker_id)

    async def _send(self, event: Message, worker_id: str) -> None:
        """Best effort: what is not heard comes again after the worker's next report."""
        try:
            await self._bus.publish(event, to=worker_id)
        except nats.errors.Error as error:
            log.warning(
                "message to a worker not sent",
                extra={
                    "event": "worker_message_not_sent",
                    "worker_id": worker_id,
                    "message_type": event.DESCRIPTOR.name,
                    "why": repr(error),
                },
            )

    def _take_leases(self) -> list[LivePrediction]:
        leased: list[LivePrediction] = []
        for version_id in self._backlog.versions_in_turn():
            while len(leased) < _GRANT_BATCH_MAX:
                prediction_id = self._backlog.first(version_id)
                live = self._predictions.get(prediction_id) if prediction_id else None
                if live is None or not self._lease(live.record):
                    break
                self._backlog.remove(version_id, live.record.id)
                leased.append(live)
        if len(leased) >= _GRANT_BATCH_MAX:
            self._kicked.set()
        return leased

    def _lease(self, record: PredictionRecord) -> bool:
        mean = self._mean_run_s.get(record.version_id)
        ahead = placement.lease_ahead(mean, self._settings.lease_ahead_max)
        worker_id = placement.place(self._fleet.loads(record.version_id), ahead)
        if worker_id is None:
            return False
        record.worker_id = worker_id
        record.attempt += 1
        key = LeaseKey(record.id, record.attempt)
        self._fleet.workers[worker_id].grant(key, record.version_id, time.monotonic())
        metrics.LEASES.inc()
        return True

    async def _commit_leases(self, leased: list[LivePrediction]) -> None:
        changes = Changes()
        for live in leased:
            changes.grant(live.record)
        await self._commits.commit(changes)
        await self.send_leases([live.record for live in leased])

    async def _request_replicas(self) -> None:
        now = time.monotonic()
        for version_id in self._backlog.versions_in_turn():
            prediction_id = self._backlog.first(version_id)
            live = self._predictions.get(prediction_id) if prediction_id else None
            if live is None:
                continue
            record = live.record
            plan = placement.plan_replica(self._fleet.rooms(version_id), record.hardware)
            self._share_places(record, plan, now)
            if plan.worker_id is not None:
                owner = record.model.partition("/")[0]
                worker = self._fleet.workers[plan.worker_id]
                worker.requests[version_id] = ReplicaRequest(owner, requested_at=now)
                log.info(
                    "replica requested",
                    extra={
                        "event": "replica_requested",
                        "version_id": version_id,
                        "worker_id": plan.worker_id,
                    },
                )
                await self.send_replica_request(plan.worker_id, version_id, owner)
        self._end_yields()
        # A version whose last waiting prediction was canceled starts to wait anew.
        for version_id in [key for key in self._starved_since if self._backlog.first(key) is None]:
            del self._starved_since[version_id]

    def _share_places(
        self, record: PredictionRecord, plan: placement.ReplicaPlan, now: float
    ) -> None:
        """A version without a replica gets a busy one's place after its time of waiting."""
        version_id = record.version_id
        is_starved = plan.reason == prediction_pb2.QUEUE_REASON_NO_CAPACITY
        if not is_starved or self._fleet.has_ready(version_id):
            self._starved_since.pop(version_id, None)
            return
        since = self._starved_since.setdefault(version_id, now)
        if now - since < self._settings.replica_share_s:
            return
        candidates = [
            (worker.lease_count(other), replica)
            for worker in self._fleet.workers.values()
            if worker.hardware == record.hardware
            for other, replica in worker.replicas.items()
            if worker.is_ready(other)
        ]
        if any(replica.yields_to == version_id for _, replica in candidates):
            return
        free = [candidate for candidate in candidates if candidate[1].yields_to is None]
        if free:
            min(free, key=lambda candidate: candidate[0])[1].yields_to = version_id

    def _end_yields(self) -> None:
        for worker in self._fleet.workers.values():
            for replica in worker.replicas.values():
                to = replica.yields_to
                if to and (self._backlog.first(to) is None or self._fleet.has_ready(to)):
                    replica.yields_to = None


def _batches(records: Sequence[PredictionRecord]) -> Iterator[list[PredictionRecord]]:
    batch: list[PredictionRecord] = []
    size = 0
    for record in records:
        if batch and size + len(record.input) > _MESSAGE_INPUT_MAX:
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += len(record.input)
    yield batch


def to_lease(record: PredictionRecord) -> events_pb2.Lease:
    """The lease message of a record's current attempt."""
    return events_pb2.Lease(
        prediction_id=record.id,
        attempt=record.attempt,
        version_id=record.version_id,
        account_id=record.account_id,
        input=json_pb2.Json(text=record.input),
        run_timeout=Duration(
            seconds=record.run_timeout_ms // 1000, nanos=record.run_timeout_ms % 1000 * 1_000_000
        ),
        traceparent=record.traceparent,
    )
