"""Where leases and replicas go."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reprise.scheduler.v1 import prediction_pb2

from services.scheduler.placement import (
    ReplicaLoad,
    WorkerRoom,
    lease_ahead,
    place,
    plan_replica,
)


def room(
    worker_id: str = "w",
    *,
    hardware: str = "cpu",
    count: int = 0,
    count_max: int = 2,
    idle: int = 0,
    is_starting: bool = False,
    has_ready: bool = False,
) -> WorkerRoom:
    return WorkerRoom(
        worker_id=worker_id,
        hardware=hardware,
        replica_count=count,
        replica_count_max=count_max,
        idle_count=idle,
        is_starting=is_starting,
        has_ready=has_ready,
    )


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 8)), max_size=5),
    st.integers(0, 3),
    st.integers(0, 60),
)
def test_no_replica_ever_holds_more_than_its_slots_and_what_lies_ahead(
    replicas: list[tuple[int, int]], ahead: int, demand: int
) -> None:
    counts = {str(index): held for index, (_, held) in enumerate(replicas)}
    slots = {str(index): slot_count for index, (slot_count, _) in enumerate(replicas)}
    before = dict(counts)
    for _ in range(demand):
        chosen = place([ReplicaLoad(key, slots[key], counts[key]) for key in counts], ahead)
        if chosen is None:
            # Refused only when every replica is full.
            assert all(counts[key] >= slots[key] * (1 + ahead) for key in counts)
            break
        counts[chosen] += 1
    for key, count in counts.items():
        assert count <= max(before[key], slots[key] * (1 + ahead))


def test_a_free_slot_comes_before_a_lease_ahead() -> None:
    assert place([ReplicaLoad("a", 1, 1), ReplicaLoad("b", 1, 0)], 16) == "b"


@pytest.mark.parametrize(
    ("mean_run_s", "expected"), [(None, 0), (1.0, 0), (0.02, 1), (0.005, 4), (0.0, 16)]
)
def test_only_fast_versions_get_leases_ahead(mean_run_s: float | None, expected: int) -> None:
    assert lease_ahead(mean_run_s, 16) == expected


@pytest.mark.parametrize(
    ("rooms", "worker_id", "reason"),
    [
        ([], None, prediction_pb2.QUEUE_REASON_NO_HARDWARE),
        ([room(hardware="gpu")], None, prediction_pb2.QUEUE_REASON_NO_HARDWARE),
        ([room()], "w", prediction_pb2.QUEUE_REASON_COLD_START),
        ([room(is_starting=True)], None, prediction_pb2.QUEUE_REASON_COLD_START),
        # One at a time, also across workers.
        ([room("a", is_starting=True), room("b")], None, prediction_pb2.QUEUE_REASON_COLD_START),
        ([room(count=2)], None, prediction_pb2.QUEUE_REASON_NO_CAPACITY),
        ([room(count=2, idle=1)], "w", prediction_pb2.QUEUE_REASON_COLD_START),
        ([room(count=1, has_ready=True)], None, prediction_pb2.QUEUE_REASON_NO_CAPACITY),
        (
            [room("a", count=2, has_ready=True), room("b", count=2, idle=2)],
            None,
            prediction_pb2.QUEUE_REASON_NO_CAPACITY,
        ),
        ([room("a", has_ready=True), room("b")], "b", prediction_pb2.QUEUE_REASON_COLD_START),
        ([room("a", count=1), room("b", count=0)], "b", prediction_pb2.QUEUE_REASON_COLD_START),
    ],
)
def test_a_missing_replica_goes_to_a_worker_with_room(
    rooms: list[WorkerRoom], worker_id: str | None, reason: int
) -> None:
    plan = plan_replica(rooms, "cpu")
    assert plan.worker_id == worker_id
    assert plan.reason == reason
