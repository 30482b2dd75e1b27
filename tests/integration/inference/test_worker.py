"""A worker process against a real NATS server and the real cog server."""

import asyncio
import shutil
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


async def test_a_lease_that_arrives_twice_is_run_once(mesh: Mesh) -> None:
    version_id = mesh.register_cog("text_echo")
    await mesh.start_worker()
    granted = lease(ID, version_id, {"text": "bob"})
    await mesh.scheduler.grant(granted, granted)
    await mesh.scheduler.completed(ID)
    await mesh.scheduler.until(lambda: not mesh.scheduler.worker.leases)
    await mesh.scheduler.grant(granted)
    await mesh.scheduler.grant(lease("q" * 26, version_id, {"text": "amy"}))
    await mesh.scheduler.completed("q" * 26)
    assert mesh.scheduler.steps(ID) == ["started", "completed"]


async def test_an_unacknowledged_report_is_sent_again_unchanged(mesh: Mesh) -> None:
    version_id = mesh.register_cog("text_echo")
    await mesh.start_worker()
    mesh.scheduler.is_deaf = True
    await mesh.scheduler.grant(lease(ID, version_id, {"text": "bob"}))
    await mesh.scheduler.until(lambda: len(mesh.scheduler.reports) >= 3)
    held = [item.prediction_id for item in mesh.scheduler.worker.leases]
    assert held == [ID], "a lease is held until its end is acknowledged"
    mesh.scheduler.is_deaf = False
    await mesh.scheduler.until(lambda: not mesh.scheduler.worker.leases)
    first, *others = [report.SerializeToString() for report in mesh.scheduler.reports]
    assert all(other == first for other in others)


async def test_a_revoked_running_prediction_stops_and_its_slot_is_free(mesh: Mesh) -> None:
    version_id = mesh.register_cog("sleeping")
    await mesh.start_worker()
    await mesh.scheduler.grant(lease(ID, version_id, {"seconds": 60}))
    await mesh.scheduler.until(lambda: "asleep" in mesh.scheduler.logs(ID))
    await mesh.scheduler.revoke(ID)
    async with asyncio.timeout(1):
        completed = await mesh.scheduler.completed(ID)
    assert completed.outcome == events_pb2.RUN_OUTCOME_CANCELED
    assert completed.run_us > 0
    await mesh.scheduler.grant(lease("q" * 26, version_id, {"seconds": 0}))
    completed = await mesh.scheduler.completed("q" * 26)
    assert completed.outcome == events_pb2.RUN_OUTCOME_SUCCEEDED


async def test_a_prediction_that_does_not_stop_is_killed_and_its_replica_replaced(
    mesh: Mesh,
) -> None:
    version_id = mesh.register_cog("stuck_in_c")
    await mesh.start_worker(cancel_grace_s="0.3")
    await mesh.scheduler.grant(lease(ID, version_id, {"seconds": 60}))
    await mesh.scheduler.until(lambda: "stuck" in mesh.scheduler.logs(ID))
    await mesh.scheduler.revoke(ID)
    completed = await mesh.scheduler.completed(ID)
    assert completed.outcome == events_pb2.RUN_OUTCOME_CANCELED
    await mesh.scheduler.grant(lease("q" * 26, version_id, {"seconds": 0}))
    completed = await mesh.scheduler.completed("q" * 26)
    assert completed.outcome == events_pb2.RUN_OUTCOME_SUCCEEDED


async def test_a_run_over_its_time_limit_fails_by_timeout(mesh: Mesh) -> None:
    version_id = mesh.register_cog("sleeping")
    await mesh.start_worker()
    await mesh.scheduler.grant(lease(ID, version_id, {"seconds": 60}, timeout_s=1))
    completed = await mesh.scheduler.completed(ID)
    assert completed.outcome == events_pb2.RUN_OUTCOME_FAILED
    assert completed.blame == events_pb2.BLAME_TIMEOUT
    assert "time limit of 1 s" in completed.error
    assert 900_000 < completed.run_us < 3_000_000


async def test_leases_wait_their_turn_and_a_waiting_one_can_be_revoked(mesh: Mesh) -> None:
    version_id = mesh.register_cog("sleeping")
    await mesh.start_worker()
    first, second, third = "a" * 26, "b" * 26, "c" * 26
    await mesh.scheduler.grant(
        lease(first, version_id, {"seconds": 60}),
        lease(second, version_id, {"seconds": 0}),
        lease(third, version_id, {"seconds": 0}),
    )
    await mesh.scheduler.until(lambda: "asleep" in mesh.scheduler.logs(first))
    await mesh.scheduler.revoke(second)
    completed = await mesh.scheduler.completed(second)
    assert completed.outcome == events_pb2.RUN_OUTCOME_CANCELED
    assert completed.run_us == 0
    assert mesh.scheduler.steps(second) == ["completed"]
    assert mesh.scheduler.steps(third) == []
    await mesh.scheduler.revoke(first)
    completed = await mesh.scheduler.completed(third)
    assert completed.outcome == events_pb2.RUN_OUTCOME_SUCCEEDED


async def test_a_newer_attempt_takes_over_from_an_older_one(mesh: Mesh) -> None:
    version_id = mesh.register_cog("sleeping")
    await mesh.start_worker()
    await mesh.scheduler.grant(lease(ID, version_id, {"seconds": 60}))
    await mesh.scheduler.until(lambda: "asleep" in mesh.scheduler.logs(ID))
    await mesh.scheduler.grant(lease(ID, version_id, {"seconds": 0}, attempt=2))
    completed = await mesh.scheduler.completed(ID, attempt=2)
    assert completed.outcome == events_pb2.RUN_OUTCOME_SUCCEEDED
    assert "completed" not in mesh.scheduler.steps(ID, attempt=1)


async def test_a_crashed_model_fails_its_prediction_and_is_replaced(mesh: Mesh) -> None:
    version_id = mesh.register_cog("crashing")
    await mesh.start_worker()
    await mesh.scheduler.grant(lease(ID, version_id, {"text": "crash"}))
    completed = await mesh.scheduler.completed(ID)
    assert completed.outcome == events_pb2.RUN_OUTCOME_FAILED
    assert completed.blame == events_pb2.BLAME_MODEL
    assert "the model's process died" in completed.error
    assert "last words" in mesh.scheduler.logs(ID)
    await mesh.scheduler.grant(lease("q" * 26, version_id, {"text": "fine"}))
    completed = await mesh.scheduler.completed("q" * 26)
    assert completed.outcome == events_pb2.RUN_OUTCOME_SUCCEEDED


async def test_an_exception_in_the_model_is_its_own_fault_and_keeps_the_logs(mesh: Mesh) -> None:
    version_id = mesh.register_cog("failing")
    await mesh.start_worker()
    await mesh.scheduler.grant(lease(ID, version_id, {"text": "this"}))
    completed = await mesh.scheduler.completed(ID)
    assert completed.blame == events_pb2.BLAME_MODEL
    assert completed.error == "ValueError: cannot work with this"
    assert "about to fail" in mesh.scheduler.logs(ID)


async def test_a_failed_setup_is_reported_and_fails_the_lease(mesh: Mesh) -> None:
    version_id = mesh.register_cog("setup_failure")
    await mesh.start_worker()
    failed = events_pb2.REPLICA_STATE_FAILED
    await mesh.scheduler.request_replica(version_id)

    def has_failed() -> bool:
        replica = mesh.scheduler.replica(version_id)
        return replica is not None and replica.state == failed

    await mesh.scheduler.until(has_failed)
    replica = mesh.scheduler.replica(version_id)
    assert replica is not None
    assert "setup failed" in replica.error
    await mesh.scheduler.grant(lease(ID, version_id, {"text": "x"}))
    completed = await mesh.scheduler.completed(ID)
    assert completed.blame == events_pb2.BLAME_MODEL
    assert "setup failed" in completed.error


async def test_items_of_an_iterator_are_reported_as_they_come(mesh: Mesh) -> None:
    version_id = mesh.register_cog("token_stream")
    await mesh.start_worker()
    await mesh.scheduler.grant(lease(ID, version_id, {"words": ["one ", "two ", "three"]}))

    def items() -> list[str]:
        return [
            orjson.loads(item.text)
            for event in mesh.scheduler.of(ID)
            for item in event.output.items
        ]

    # The model yields the rest only after a file appears that nobody makes.
    await mesh.scheduler.until(lambda: items() == ["one "])
    assert mesh.scheduler.steps(ID)[:2] == ["started", "output"]
    await mesh.scheduler.revoke(ID)
    completed = await mesh.scheduler.completed(ID)
    assert completed.outcome == events_pb2.RUN_OUTCOME_CANCELED
    assert not completed.HasField("output")


async def test_an_idle_replica_gives_way_where_only_one_has_room(mesh: Mesh) -> None:
    first, second = mesh.register_cog("text_echo"), mesh.register_cog("failing")
    await mesh.start_worker(replica_count_max="1")
    await mesh.scheduler.grant(lease(ID, first, {"text": "x"}))
    await mesh.scheduler.completed(ID)
    await mesh.scheduler.grant(lease("q" * 26, second, {"text": "x"}))
    await mesh.scheduler.completed("q" * 26)
    await mesh.scheduler.until(lambda: mesh.scheduler.replica(first) is None)
    assert mesh.scheduler.replica(second) is not None


async def test_a_stored_file_and_a_url_reach_the_model_as_files(mesh: Mesh) -> None:
    version_id = mesh.register_cog("file_input")
    stored = mesh.storage.files.put(b"twelve bytes", content_type="text/plain")
    mesh.gateway.fetcher.pages["https://example.org/a.txt"] = b"123"
    await mesh.start_worker()
    await mesh.scheduler.grant(
        lease("a" * 26, version_id, {"document": f"reprise-file:{stored.id}"}),
        lease("b" * 26, version_id, {"document": "https://example.org/a.txt"}),
        lease("c" * 26, version_id, {"document": "data:text/plain;base64,aGVsbG8="}),
    )
    lengths = [(await mesh.scheduler.completed(name * 26)).output.text for name in ("a", "b", "c")]
    assert lengths == ["12", "3", "5"]


async def test_an_input_file_that_cannot_be_had_is_the_inputs_fault(mesh: Mesh) -> None:
    version_id = mesh.register_cog("file_input")
    await mesh.start_worker()
    await mesh.scheduler.grant(
        lease("a" * 26, version_id, {"document": "reprise-file:nothing"}),
        lease("b" * 26, version_id, {"document": "http://10.0.0.1/"}),
        lease("c" * 26, version_id, {"document": "/etc/passwd"}),
    )
    for name in ("a", "b", "c"):
        completed = await mesh.scheduler.completed(name * 26)
        assert completed.blame == events_pb2.BLAME_INPUT
        assert completed.error.startswith("document: ")
        assert completed.run_us == 0 or name == "c"


async def test_a_file_that_the_model_makes_is_stored(mesh: Mesh) -> None:
    version_id = mesh.register_cog("file_output")
    await mesh.start_worker()
    await mesh.scheduler.grant(lease(ID, version_id, {"text": "content"}))
    completed = await mesh.scheduler.completed(ID)
    reference = orjson.loads(completed.output.text)
    assert reference.startswith("reprise-file:")
    file_id = reference.removeprefix("reprise-file:")
    assert mesh.storage.files.contents[file_id] == b"CONTENT"
    assert mesh.storage.files.files[file_id].name == "output.txt"


async def test_a_killed_worker_leaves_no_process_and_the_next_one_cleans_up(mesh: Mesh) -> None:
    version_id = mesh.register_cog("sleeping")
    await mesh.start_worker()
    await mesh.scheduler.grant(lease(ID, version_id, {"seconds": 60}))
    await mesh.scheduler.until(lambda: "asleep" in mesh.scheduler.logs(ID))
    worker = mesh.scheduler.worker
    children = mesh.children()
    assert children
    await mesh.end_worker(signal.SIGKILL)
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, 10)
    assert alive == []
    assert any((mesh.data_dir / "running").iterdir())
    await mesh.start_worker()
    assert not any((mesh.data_dir / "running").iterdir())
    assert mesh.scheduler.worker.host_id == worker.host_id
    assert mesh.scheduler.worker.worker_id != worker.worker_id


async def test_a_stopped_worker_lets_its_prediction_end_and_says_goodbye(mesh: Mesh) -> None:
    version_id = mesh.register_cog("sleeping")
    await mesh.start_worker()
    worker_id = mesh.scheduler.worker.worker_id
    waiting = "w" * 26
    await mesh.scheduler.grant(
        lease(ID, version_id, {"seconds": 1.0}), lease(waiting, version_id, {"seconds": 0})
    )
    await mesh.scheduler.until(lambda: "asleep" in mesh.scheduler.logs(ID))
    children = mesh.children()
    assert await mesh.end_worker() == 0
    assert mesh.scheduler.steps(ID)[-1] == "completed"
    assert mesh.scheduler.steps(waiting) == [], "left to another worker"
    await mesh.scheduler.until(lambda: mesh.scheduler.stopped == [worker_id])
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, 5)
    assert alive == []


async def test_a_frozen_worker_stops_its_heartbeat(mesh: Mesh) -> None:
    await mesh.start_worker()
    assert mesh.process is not None
    mesh.process.send_signal(signal.SIGSTOP)
    try:
        mesh.scheduler.workers.clear()
        try:
            # One may have been under way.
            await mesh.scheduler.until(lambda: bool(mesh.scheduler.workers), timeout_s=1)
            mesh.scheduler.workers.clear()
            await mesh.scheduler.until(lambda: bool(mesh.scheduler.workers), timeout_s=1)
        except TimeoutError:
            pass
        assert not mesh.scheduler.workers
    finally:
        mesh.process.send_signal(signal.SIGCONT)
    await mesh.scheduler.until(lambda: bool(mesh.scheduler.workers))


async def test_a_worker_outlives_its_nats_server_and_reports_what_ended_meanwhile(
    mesh: Mesh,
) -> None:
    version_id = mesh.register_cog("sleeping")
    await mesh.start_worker()
    await mesh.scheduler.grant(lease(ID, version_id, {"seconds": 0.5}))
    await mesh.scheduler.until(lambda: "asleep" in mesh.scheduler.logs(ID))
    mesh.nats.kill()
    shutil.rmtree(mesh.nats.folder)
    await mesh.nats.start()
    completed = await mesh.scheduler.completed(ID)
    assert completed.outcome == events_pb2.RUN_OUTCOME_SUCCEEDED
    mesh.scheduler.workers.clear()
    await mesh.scheduler.until(lambda: bool(mesh.scheduler.workers))
    await mesh.scheduler.grant(lease("q" * 26, version_id, {"seconds": 0}))
    await mesh.scheduler.completed("q" * 26)
