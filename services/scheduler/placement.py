"""Which replica takes the next prediction, and where a missing one is started. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from reprise.scheduler.v1 import prediction_pb2

# A fast version's slot holds leases for about this long, a round trip to its worker.
LEASE_AHEAD_S = 0.02

QueueReason: TypeAlias = prediction_pb2.QueueReason.ValueType


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """A ready replica and how many leases it holds."""

    worker_id: str
    slot_count: int
    lease_count: int


@dataclass(frozen=True, slots=True)
class WorkerRoom:
    """A worker as a host for one more replica of one version."""

    worker_id: str
    hardware: str
    replica_count: int
    replica_count_max: int
    # Replicas without any lease, which the worker evicts when it needs the place.
    idle_count: int
    # Whether a replica of the version is asked for or loading here.
    is_starting: bool
    # Whether one is ready here.
    has_ready: bool


@dataclass(frozen=True, slots=True)
class ReplicaPlan:
    """Where to start a replica, or why none is started."""

    worker_id: str | None
    reason: QueueReason


def lease_ahead(mean_run_s: float | None, limit: int) -> int:
    """Extra leases per slot; none while the version's run time is unknown."""
    if mean_run_s is None:
        return 0
    return min(limit, int(LEASE_AHEAD_S / max(mean_run_s, 1e-6)))


def place(replicas: Sequence[ReplicaLoad], ahead: int) -> str | None:
    """The worker that gets the next lease: the least loaded; None when all are full."""
    best: ReplicaLoad | None = None
    for replica in replicas:
        if replica.lease_count >= replica.slot_count * (1 + ahead):
            continue
        if best is None or _load(replica) < _load(best):
            best = replica
    return best.worker_id if best is not None else None


def plan_replica(workers: Sequence[WorkerRoom], hardware: str) -> ReplicaPlan:
    """Where a version whose predictions wait gets one more replica.

    Nothing is evicted for a version that has a replica; one that has none may take an idle place.
    """
    fitting = [worker for worker in workers if worker.hardware == hardware]
    if not fitting:
        return ReplicaPlan(None, prediction_pb2.QUEUE_REASON_NO_HARDWARE)
    if any(worker.is_starting for worker in fitting):
        return ReplicaPlan(None, prediction_pb2.QUEUE_REASON_COLD_START)
    has_ready = any(worker.has_ready for worker in fitting)
    hosts = [worker for worker in fitting if not worker.has_ready and _has_room(worker, has_ready)]
    if not hosts:
        return ReplicaPlan(None, prediction_pb2.QUEUE_REASON_NO_CAPACITY)
    host = min(hosts, key=lambda worker: worker.replica_count / worker.replica_count_max)
    return ReplicaPlan(host.worker_id, prediction_pb2.QUEUE_REASON_COLD_START)


def _has_room(worker: WorkerRoom, has_ready: bool) -> bool:
    if worker.replica_count < worker.replica_count_max:
        return True
    return not has_ready and worker.idle_count > 0


def _load(replica: ReplicaLoad) -> float:
    return replica.lease_count / max(replica.slot_count, 1)
