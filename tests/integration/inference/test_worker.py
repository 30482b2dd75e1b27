"""A worker process against a real NATS server and the real cog server."""

import asyncio
import signal

import orjson
import psutil
from reprise.inference.v1 import events_pb2

from tests.integration.inference.conftest import Mesh, lease

ID = "p" * 26


async def test_a_lease_is_run_and_its_steps_leave_in_one_report(mesh: Mesh) -> None:
    version_id = mesh.register_cog("text_echo")
    await mesh.start_worker()
    await mesh.scheduler.grant(lease(ID, version_id, {"text": "bob", "times": 2}))
    completed = await mesh.scheduler.completed(ID)
    assert completed.outcome == events_pb2.RUN_OUTCOME_SUCCEEDED
    assert orjson.loads(completed.output.text) == "hello bob bob"
    assert completed.run_us > 0
    assert mesh.scheduler.steps(ID) == ["started", "completed"]
    assert [event.sequence for event in mesh.scheduler.of(ID)] == [1, 2]
    assert len(mesh.scheduler.reports) == 1
    replica = mesh.scheduler.replica(version_id)
    assert replica is not None
    assert (replica.state, replica.slot_count) == (events_pb2.REPLICA_STATE_READY, 1)
    await mesh.scheduler.until(lambda: not mesh.scheduler.worker.leases)
