"""Books about workers: slots, requests for replicas, rooms."""

from reprise.inference.v1 import events_pb2

from services.scheduler.fleet import Fleet, ReplicaRequest, Worker
from services.scheduler.leases import LeaseKey

STARTING = events_pb2.REPLICA_STATE_STARTING
READY = events_pb2.REPLICA_STATE_READY
FAILED = events_pb2.REPLICA_STATE_FAILED
KEY = LeaseKey("p", 1)


def report(
    state: events_pb2.ReplicaState.ValueType | None = None, *, count_max: int = 2
) -> events_pb2.WorkerReported:
    message = events_pb2.WorkerReported(
        worker_id="w", host_id="h", hardware="cpu", replica_count_max=count_max
    )
    if state is not None:
        message.replicas.add(version_id="v", state=state, slot_count=1, error="no torch")
    return message


def worker(*, requested_at: float | None = None) -> Worker:
    made = Worker("w", reported_at=0.0)
    made.update(report(), 0.0)
    if requested_at is not None:
        made.requests["v"] = ReplicaRequest("alice", requested_at)
    return made


def test_a_revoked_lease_takes_its_slot_until_the_worker_lets_go() -> None:
    made = worker()
    made.grant(KEY, "v", 0.0)
    made.revoke(KEY)
    assert made.lease_count("v") == 1
    assert made.release(KEY)
    assert made.lease_count("v") == 0
    assert not made.release(KEY)


def test_the_failure_of_an_earlier_try_does_not_fail_a_new_request() -> None:
    made = worker(requested_at=10.0)
    made.update(report(FAILED), 10.1)
    assert made.settle_requests(10.1, 1.5) == []
    made.update(report(STARTING), 10.2)
    made.settle_requests(10.2, 1.5)
    made.update(report(FAILED), 10.3)
    (failure,) = made.settle_requests(10.3, 1.5)
    assert (failure.version_id, failure.error) == ("v", "no torch")
    assert made.requests == {}


def test_a_request_that_the_worker_does_not_mention_is_due_again() -> None:
    made = worker(requested_at=10.0)
    assert list(made.overdue_requests(10.5, 1.5)) == []
    assert list(made.overdue_requests(11.6, 1.5)) == ["v"]
    assert list(made.overdue_requests(11.7, 1.5)) == []


def test_a_ready_replica_ends_its_request() -> None:
    made = worker(requested_at=10.0)
    made.update(report(READY), 10.1)
    assert made.settle_requests(10.1, 1.5) == []
    assert made.requests == {}
    assert made.is_ready("v")


def test_a_worker_that_drains_offers_no_room_and_owes_no_replica() -> None:
    fleet = Fleet()
    draining = fleet.adopt("w", 0.0)
    draining.update(report(), 0.0)
    assert [room.worker_id for room in fleet.rooms("v")] == ["w"]
    draining.requests["v"] = ReplicaRequest("alice", 0.0)
    draining.update(report(count_max=0), 1.0)
    assert fleet.rooms("v") == []
    assert draining.requests == {}


def test_a_new_process_on_the_same_host_names_its_predecessors() -> None:
    fleet = Fleet()
    fleet.adopt("old", 0.0).update(report(), 0.0)
    new = fleet.adopt("new", 1.0)
    new.update(report(), 1.0)
    assert [other.worker_id for other in fleet.predecessors(new)] == ["old"]
    assert [other.worker_id for other in fleet.silent(5.0, 4.5)] == ["old"]
