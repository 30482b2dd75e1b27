"""Leases: once each, in order, stopped in time, and reported whatever happens."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

import orjson
import pytest
from reprise.inference.v1 import events_pb2
from reprise.scheduler.v1 import events_pb2 as scheduler_events_pb2

from services.inference.execution import Bench, ExecutionLimits
from services.inference.heartbeat import Heartbeat, WorkerIdentity, WorkerSnapshot
from services.inference.loaded_model import LoadedModel, LoadFailed
from services.inference.prediction_files import PredictionFiles
from services.inference.replicas import PoolLimits, ReplicaPool
from services.inference.reports import Reporter, ReportLimits
from services.inference.versions import Version, VersionCatalogue
from services.inference.worker import Worker, WorkerLimits
from tests.unit.inference.fakes import WAIT_S, FakeModel, FakeVersions, Outbox, lease


class SilentHeartbeat:
    def poke(self) -> None:
        return

    async def run(self) -> None:
        await asyncio.get_running_loop().create_future()


@dataclass
class Desk:
    """One worker whose models are fakes, in the order of their loading."""

    worker: Worker
    outbox: Outbox
    snapshot: WorkerSnapshot
    models: list[FakeModel]
    load_counts: Counter[str]
    task: asyncio.Task[None]

    async def grant(self, *leases: scheduler_events_pb2.Lease) -> None:
        await self.worker.on_leases_granted(scheduler_events_pb2.LeasesGranted(leases=leases))

    async def revoke(self, prediction_id: str, attempt: int = 1) -> None:
        await self.worker.on_lease_revoked(
            scheduler_events_pb2.LeaseRevoked(prediction_id=prediction_id, attempt=attempt)
        )

    async def entered(self, run_id: str) -> FakeModel:
        async with asyncio.timeout(WAIT_S):
            while True:
                for model in self.models:
                    if run_id in model.entered:
                        return model
                await asyncio.sleep(0.001)

    def held(self) -> list[str]:
        return [item.prediction_id for item in self.snapshot.report().leases]


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    outbox, models = Outbox(), cast("list[FakeModel]", [])
    load_counts: Counter[str] = Counter()

    async def load(version: Version) -> LoadedModel:
        load_counts[version.id] += 1
        if version.id == "broken":
            raise LoadFailed("setup failed: no weights", is_models_fault=True)
        models.append(FakeModel(concurrency=4 if version.id == "wide" else 1))
        return models[-1]

    identity = WorkerIdentity(worker_id="w", host_id="h", hardware="cpu", isolation="none")
    snapshot = WorkerSnapshot(identity, 4)
    pool = ReplicaPool(
        load,
        limits=PoolLimits(replica_count_max=2, memory_floor_bytes=0),
        on_change=lambda: worker.on_replicas_changed(),
    )
    limits = ReportLimits(report_max_bytes=100_000, backlog_max_bytes=100_000, log_interval_s=0.02)
    bench = Bench(
        versions=cast(VersionCatalogue, FakeVersions()),
        pool=pool,
        files=cast(PredictionFiles, None),
        reporter=Reporter(outbox.send, worker_id="w", limits=limits),
        limits=ExecutionLimits(cancel_grace_s=0.1, output_max_bytes=1000),
    )
    worker = Worker(
        bench,
        snapshot=snapshot,
        heartbeat=cast(Heartbeat, SilentHeartbeat()),
        limits=WorkerLimits(lease_count_max=100, drain_grace_s=0.2),
    )
    task = asyncio.create_task(worker.run())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    yield Desk(worker, outbox, snapshot, models, load_counts, task)
    task.cancel()
    await asyncio.wait({task})


async def test_a_run_reports_its_output_and_its_own_metrics(desk: Desk) -> None:
    await desk.grant(lease("p", text="hi"))
    completed = await desk.outbox.completed("p")
    assert completed.outcome == events_pb2.RUN_OUTCOME_SUCCEEDED
    assert orjson.loads(completed.output.text) == "hi"
    assert orjson.loads(completed.metrics.text) == {"tokens": 2}
    steps = [event.WhichOneof("step") for event in desk.outbox.events()]
    assert steps == ["started", "logged", "completed"]
    assert len(desk.outbox.reports) == 1


async def test_a_repeated_lease_is_ignored_while_it_runs_and_after_it_ended(desk: Desk) -> None:
    granted = lease("p", do="wait")
    await desk.grant(granted, granted)
    model = await desk.entered("p1")
    await desk.grant(granted)
    await model.cancel("p1")
    await desk.outbox.completed("p")
    await desk.grant(granted)
    await desk.grant(lease("q"))
    await desk.outbox.completed("q")
    assert desk.models[0].entered == ["p1", "q1"]


async def test_a_lease_is_held_until_its_end_is_acknowledged(desk: Desk) -> None:
    desk.outbox.is_deaf = True
    await desk.grant(lease("p"))
    await desk.outbox.completed("p")
    assert desk.held() == ["p"]
    desk.outbox.is_deaf = False
    async with asyncio.timeout(WAIT_S):
        while desk.held():
            await asyncio.sleep(0.001)


async def test_leases_of_one_replica_run_in_order_and_no_more_than_its_slots(desk: Desk) -> None:
    names = [f"p{number}" for number in range(8)]
    await desk.grant(*(lease(name) for name in names))
    for name in names:
        await desk.outbox.completed(name)
    assert desk.models[0].entered == [f"{name}1" for name in names]
    assert desk.models[0].running_max == 1


async def test_a_replica_with_several_slots_runs_side_by_side(desk: Desk) -> None:
    await desk.grant(*(lease(f"p{n}", version_id="wide", do="wait") for n in range(6)))
    for number in range(4):
        await desk.entered(f"p{number}1")
    assert desk.models[0].running_max == 4
    assert len(desk.models[0].entered) == 4
    for number in range(6):
        await desk.revoke(f"p{number}")
    for number in range(6):
        await desk.outbox.completed(f"p{number}")


async def test_a_revoked_waiting_lease_never_reaches_the_model(desk: Desk) -> None:
    await desk.grant(lease("running", do="wait"), lease("waiting"))
    model = await desk.entered("running1")
    await desk.revoke("waiting")
    completed = await desk.outbox.completed("waiting")
    assert completed.outcome == events_pb2.RUN_OUTCOME_CANCELED
    assert completed.run_us == 0
    await desk.revoke("running")
    completed = await desk.outbox.completed("running")
    assert completed.outcome == events_pb2.RUN_OUTCOME_CANCELED
    assert model.entered == ["running1"]


async def test_a_lease_that_is_revoked_before_its_first_step_is_reported_as_canceled(
    desk: Desk,
) -> None:
    await desk.grant(lease("p"))
    await desk.revoke("p")
    completed = await desk.outbox.completed("p")
    assert completed.outcome == events_pb2.RUN_OUTCOME_CANCELED


async def test_a_revocation_that_overtakes_its_lease_wins(desk: Desk) -> None:
    await desk.revoke("p")
    await desk.grant(lease("p"), lease("q"))
    await desk.outbox.completed("q")
    assert desk.models[0].entered == ["q1"]


async def test_a_model_that_ignores_a_cancel_is_killed_and_replaced(desk: Desk) -> None:
    await desk.grant(lease("p", do="ignore_cancel"), lease("next"))
    first = await desk.entered("p1")
    await desk.revoke("p")
    completed = await desk.outbox.completed("p")
    assert completed.outcome == events_pb2.RUN_OUTCOME_CANCELED
    assert first.stopped.is_set()
    completed = await desk.outbox.completed("next")
    assert completed.outcome == events_pb2.RUN_OUTCOME_SUCCEEDED
    assert desk.models[1].entered == ["next1"]


async def test_neighbours_of_a_killed_run_are_the_platforms_fault(desk: Desk) -> None:
    await desk.grant(
        lease("bad", version_id="wide", do="ignore_cancel"),
        lease("good", version_id="wide", do="ignore_cancel"),
    )
    await desk.entered("bad1")
    await desk.entered("good1")
    await desk.revoke("bad")
    completed = await desk.outbox.completed("good")
    assert completed.blame == events_pb2.BLAME_PLATFORM


async def test_a_run_over_its_time_limit_is_a_timeout(desk: Desk) -> None:
    await desk.grant(lease("p", do="wait", timeout_s=0.05))
    completed = await desk.outbox.completed("p")
    assert completed.blame == events_pb2.BLAME_TIMEOUT
    assert completed.run_us >= 50_000


async def test_a_crash_is_the_models_fault_and_the_waiting_lease_gets_a_new_replica(
    desk: Desk,
) -> None:
    await desk.grant(lease("p", do="crash"), lease("next"))
    completed = await desk.outbox.completed("p")
    assert completed.blame == events_pb2.BLAME_MODEL
    assert completed.error == "the model's process died: exit status 3"
    completed = await desk.outbox.completed("next")
    assert completed.outcome == events_pb2.RUN_OUTCOME_SUCCEEDED
    assert len(desk.models) == 2


async def test_a_failed_load_fails_its_leases_and_the_next_request_tries_again(
    desk: Desk,
) -> None:
    await desk.grant(lease("p", version_id="broken"))
    completed = await desk.outbox.completed("p")
    assert (completed.blame, completed.error) == (
        events_pb2.BLAME_MODEL,
        "setup failed: no weights",
    )
    (report,) = desk.snapshot.report().replicas
    assert report.state == events_pb2.REPLICA_STATE_FAILED
    assert report.error == "setup failed: no weights"
    await desk.grant(lease("q", version_id="broken"))
    await desk.outbox.completed("q")
    assert desk.load_counts["broken"] == 2


async def test_items_leave_without_waiting_for_the_end_and_are_not_repeated_in_it(
    desk: Desk,
) -> None:
    await desk.grant(lease("p", version_id="iterator", do="items"))
    completed = await desk.outbox.completed("p")
    items = [
        orjson.loads(item.text) for event in desk.outbox.events() for item in event.output.items
    ]
    assert items == ["item 0", "item 1", "item 2"]
    assert not completed.HasField("output")


async def test_an_output_that_is_too_large_fails_with_the_limit_and_the_way_out(
    desk: Desk,
) -> None:
    await desk.grant(lease("p", text="x" * 2000))
    completed = await desk.outbox.completed("p")
    assert completed.blame == events_pb2.BLAME_MODEL
    assert "1000 are allowed" in completed.error
    assert "return a Path" in completed.error


async def test_an_input_that_is_no_object_is_the_inputs_fault(desk: Desk) -> None:
    granted = lease("p")
    granted.input.text = "[1]"
    await desk.grant(granted)
    completed = await desk.outbox.completed("p")
    assert completed.blame == events_pb2.BLAME_INPUT


async def test_a_newer_attempt_silences_the_older_one(desk: Desk) -> None:
    await desk.grant(lease("p", do="wait"))
    model = await desk.entered("p1")
    await desk.grant(lease("p", attempt=2))
    completed = await desk.outbox.completed("p", attempt=2)
    assert completed.outcome == events_pb2.RUN_OUTCOME_SUCCEEDED
    assert model.closed_early == ["p1"], "the model was told to stop"
    assert not [e for e in desk.outbox.events() if e.attempt == 1 and e.HasField("completed")]
    await desk.grant(lease("p", attempt=1))
    assert desk.held() == []


async def test_a_draining_worker_ends_what_runs_and_takes_nothing_new(desk: Desk) -> None:
    await desk.grant(lease("running", do="wait"), lease("waiting"))
    model = await desk.entered("running1")
    desk.task.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert desk.held() == ["running"]
    assert desk.snapshot.report().replica_count_max == 0
    await desk.grant(lease("late"))
    await model.cancel("running1")
    await asyncio.wait({desk.task}, timeout=WAIT_S)
    assert desk.task.done()
    names = {event.prediction_id for event in desk.outbox.events()}
    assert names == {"running"}
    assert model.stopped.is_set()


async def test_a_drain_has_an_end(desk: Desk) -> None:
    await desk.grant(lease("p", do="ignore_cancel"))
    model = await desk.entered("p1")
    desk.task.cancel()
    await asyncio.wait({desk.task}, timeout=WAIT_S)
    assert desk.task.done()
    assert model.stopped.is_set()
    completed: list[Any] = [e for e in desk.outbox.events() if e.HasField("completed")]
    assert completed == []
