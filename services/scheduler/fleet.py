"""Workers, their replicas and the leases that each was given; as reported, never guessed."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from reprise.inference.v1 import events_pb2

from services.scheduler.leases import Grant, LeaseKey
from services.scheduler.placement import ReplicaLoad, WorkerRoom


@dataclass(slots=True)
class Replica:
    """One version on one worker."""

    state: events_pb2.ReplicaState.ValueType
    slot_count: int
    error: str
    # A version without any replica that is to get this one's place.
    yields_to: str | None = None


@dataclass(slots=True)
class ReplicaRequest:
    """A replica that was asked for and is not ready yet."""

    owner: str
    requested_at: float
    # The worker has reported that it is starting.
    is_known: bool = False


@dataclass(slots=True)
class ReplicaFailure:
    """A version that a worker could not load."""

    version_id: str
    error: str


@dataclass(slots=True)
class Worker:
    """One worker process."""

    worker_id: str
    reported_at: float
    host_id: str = ""
    hardware: str = ""
    isolation: str = ""
    replica_count_max: int = 0
    replicas: dict[str, Replica] = field(default_factory=dict)
    requests: dict[str, ReplicaRequest] = field(default_factory=dict)
    granted: dict[LeaseKey, Grant] = field(default_factory=dict)
    # Taken back, but still with the worker; version id by lease.
    revoked: dict[LeaseKey, str] = field(default_factory=dict)
    _held: dict[str, set[LeaseKey]] = field(default_factory=dict)

    def grant(self, key: LeaseKey, version_id: str, now: float) -> None:
        """Notes a lease."""
        self.granted[key] = Grant(version_id, granted_at=now)
        self._held.setdefault(version_id, set()).add(key)

    def revoke(self, key: LeaseKey) -> None:
        """Takes a lease back; its slot stays taken until the worker lets go."""
        grant = self.granted.pop(key, None)
        if grant is not None:
            self.revoked[key] = grant.version_id

    def release(self, key: LeaseKey) -> bool:
        """Forgets a lease, granted or revoked; whether a slot became free."""
        grant = self.granted.pop(key, None)
        version_id = grant.version_id if grant is not None else self.revoked.pop(key, None)
        if version_id is None:
            return False
        held = self._held[version_id]
        held.discard(key)
        if not held:
            del self._held[version_id]
        return True

    def lease_count(self, version_id: str) -> int:
        """Leases of a version that take a slot."""
        return len(self._held.get(version_id, ()))

    def is_ready(self, version_id: str) -> bool:
        replica = self.replicas.get(version_id)
        return replica is not None and replica.state == events_pb2.REPLICA_STATE_READY

    @property
    def is_draining(self) -> bool:
        """Whether the worker takes nothing more."""
        return self.replica_count_max == 0

    def update(self, report: events_pb2.WorkerReported, now: float) -> None:
        """Takes over a report."""
        self.reported_at = now
        self.host_id = report.host_id
        self.hardware = report.hardware
        self.isolation = report.isolation
        self.replica_count_max = max(report.replica_count_max, 0)
        if self.is_draining:
            self.requests.clear()
        before = self.replicas
        self.replicas = {
            replica.version_id: Replica(
                state=replica.state,
                slot_count=max(replica.slot_count, 1),
                error=replica.error,
                yields_to=old.yields_to if (old := before.get(replica.version_id)) else None,
            )
            for replica in report.replicas
        }

    def settle_requests(self, now: float, resend_after_s: float) -> list[ReplicaFailure]:
        """Compares what was asked for with what is there; answers the failed ones."""
        failures = []
        for version_id, request in list(self.requests.items()):
            replica = self.replicas.get(version_id)
            state = replica.state if replica is not None else None
            # A failure of an earlier try may still be listed when the request is new.
            is_fresh = request.is_known or now - request.requested_at >= resend_after_s
            if state == events_pb2.REPLICA_STATE_STARTING:
                request.is_known = True
            elif state == events_pb2.REPLICA_STATE_READY:
                del self.requests[version_id]
            elif replica is not None and is_fresh:
                del self.requests[version_id]
                failures.append(ReplicaFailure(version_id, replica.error))
            elif replica is None and request.is_known:
                del self.requests[version_id]
        return failures

    def overdue_requests(self, now: float, resend_after_s: float) -> Iterator[str]:
        """Versions that were asked for and of which the worker says nothing."""
        for version_id, request in self.requests.items():
            if version_id not in self.replicas and now - request.requested_at >= resend_after_s:
                request.requested_at = now
                yield version_id

    def room(self, version_id: str) -> WorkerRoom:
        """This worker as a host for one more replica of the version."""
        loaded = {
            key
            for key, replica in self.replicas.items()
            if replica.state != events_pb2.REPLICA_STATE_FAILED
        } | self.requests.keys()
        starting = self.replicas.get(version_id)
        return WorkerRoom(
            worker_id=self.worker_id,
            hardware=self.hardware,
            replica_count=len(loaded),
            replica_count_max=self.replica_count_max,
            idle_count=sum(1 for key in loaded if self.is_ready(key) and key not in self._held),
            is_starting=version_id in self.requests
            or (starting is not None and starting.state == events_pb2.REPLICA_STATE_STARTING),
            has_ready=self.is_ready(version_id),
        )


class Fleet:
    """All workers that are not lost, by id."""

    def __init__(self) -> None:
        self.workers: dict[str, Worker] = {}

    def adopt(self, worker_id: str, now: float) -> Worker:
        """The worker of this id; a new one when it is not known."""
        worker = self.workers.get(worker_id)
        if worker is None:
            worker = self.workers[worker_id] = Worker(worker_id, reported_at=now)
        return worker

    def predecessors(self, worker: Worker) -> list[Worker]:
        """Older processes on the same host: they are gone."""
        return [
            other
            for other in self.workers.values()
            if other is not worker and other.host_id and other.host_id == worker.host_id
        ]

    def silent(self, now: float, timeout_s: float) -> list[Worker]:
        return [worker for worker in self.workers.values() if now - worker.reported_at >= timeout_s]

    def loads(self, version_id: str) -> list[ReplicaLoad]:
        """Ready replicas of a version that may take leases."""
        return [
            ReplicaLoad(
                worker_id=worker.worker_id,
                slot_count=worker.replicas[version_id].slot_count,
                lease_count=worker.lease_count(version_id),
            )
            for worker in self.workers.values()
            if worker.is_ready(version_id) and not worker.replicas[version_id].yields_to
        ]

    def rooms(self, version_id: str) -> list[WorkerRoom]:
        # A worker that is known only by its leases, after a restart, has not said what it offers.
        return [
            worker.room(version_id) for worker in self.workers.values() if not worker.is_draining
        ]

    def has_ready(self, version_id: str) -> bool:
        return any(worker.is_ready(version_id) for worker in self.workers.values())

    def release(self, worker_id: str, key: LeaseKey) -> bool:
        """Forgets a lease of a worker; whether a slot became free."""
        worker = self.workers.get(worker_id)
        return worker is not None and worker.release(key)
