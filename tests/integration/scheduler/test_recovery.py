"""What remains of predictions when workers, the scheduler or NATS die, or messages go astray."""

import asyncio
import signal

import pytest
from reprise.inference.v1 import events_pb2
from reprise.scheduler.v1 import events_pb2 as scheduler_events_pb2
from reprise.wire.v1 import json_pb2

from services.chassis.errors import Unavailable
from tests.doubles.worker import FakeWorker, Run, succeeded
from tests.integration.scheduler.process import (
    FAILED,
    PROCESSING,
    SUCCEEDED,
    SchedulerProcess,
    eventually,
)


async def forever(run: Run) -> events_pb2.RunCompleted:
    await asyncio.Event().wait()
    raise AssertionError


def event(
    prediction_id: str, sequence: int, *, attempt: int = 1, **step: object
) -> events_pb2.RunEvent:
    return events_pb2.RunEvent(
        prediction_id=prediction_id,
        attempt=attempt,
        sequence=sequence,
        **step,  # type: ignore[arg-type]  # one of the steps, by its field's name
    )


async def until_leased(worker: FakeWorker, prediction_id: str, *, count: int = 1) -> None:
    await eventually(
        lambda: sum(lease.prediction_id == prediction_id for lease in worker.leases_heard) >= count
    )


async def test_a_silent_worker_loses_its_run_to_another_one(scheduler: SchedulerProcess) -> None:
    first = await scheduler.worker("w1", behaviour=forever)
    created = await scheduler.create()
    await scheduler.watch(created.id, until=lambda item: item.status == PROCESSING)
    second = await scheduler.worker("w2")
    await first.kill()
    ended = await scheduler.end_of(created.id)
    assert ended.status == SUCCEEDED
    assert [lease.attempt for lease in second.leases_heard] == [2]
    assert "Attempt 1 was lost" in ended.logs
    assert (await scheduler.receipt(created.id)).is_captured


async def test_a_worker_started_again_on_its_host_ends_the_old_leases_at_once(
    scheduler: SchedulerProcess,
) -> None:
    await scheduler.kill()
    scheduler.settings["HEARTBEAT_TIMEOUT_S"] = "60"
    await scheduler.start()
    first = await scheduler.worker("w1", host_id="h", behaviour=forever)
    created = await scheduler.create()
    await scheduler.watch(created.id, until=lambda item: item.status == PROCESSING)
    await first.kill()
    await scheduler.worker("w2", host_id="h")
    assert (await scheduler.end_of(created.id)).status == SUCCEEDED


async def test_three_lost_workers_fail_the_run_free_of_charge(scheduler: SchedulerProcess) -> None:
    worker = await scheduler.worker("w0", host_id="h", behaviour=forever)
    created = await scheduler.create()
    for index in range(1, 4):
        await until_leased(worker, created.id)
        await scheduler.watch(created.id, until=lambda item: item.status == PROCESSING)
        await worker.kill()
        worker = await scheduler.worker(f"w{index}", host_id="h", behaviour=forever)
    ended = await scheduler.end_of(created.id)
    assert ended.status == FAILED
    assert ended.error.startswith("worker_lost")
    assert not (await scheduler.receipt(created.id)).is_captured


async def test_events_of_a_lost_attempt_change_nothing(scheduler: SchedulerProcess) -> None:
    first = await scheduler.worker("w1", behaviour=forever)
    created = await scheduler.create()
    await scheduler.watch(created.id, until=lambda item: item.status == PROCESSING)
    second = await scheduler.worker("w2", behaviour=forever)
    first.is_silent = True
    await until_leased(second, created.id)
    # The paused worker wakes up and tells of its end.
    await first.send([event(created.id, 2, completed=succeeded('"stale"'))])
    await second.send([event(created.id, 2, attempt=1, completed=succeeded('"stale"'))])
    await eventually(lambda: second.runs[created.id].sequence == 1)
    await second.send([event(created.id, 2, attempt=2, completed=succeeded('"fresh"'))])
    assert (await scheduler.end_of(created.id)).output.text == '"fresh"'


async def test_a_lease_message_that_got_lost_is_sent_again(scheduler: SchedulerProcess) -> None:
    worker = await scheduler.worker()
    worker.deaf_to_grants = 1
    ended = await scheduler.create(wait_s=20)
    assert ended.status == SUCCEEDED
    assert [lease.attempt for lease in worker.leases_heard] == [1, 1]


async def test_a_lease_that_its_worker_never_takes_goes_elsewhere(
    scheduler: SchedulerProcess,
) -> None:
    worker = await scheduler.worker()
    worker.deaf_to_grants = 4
    ended = await scheduler.create(wait_s=20)
    assert ended.status == SUCCEEDED
    assert [lease.attempt for lease in worker.leases_heard] == [1, 1, 1, 1, 2]


async def test_repeated_and_reordered_reports_give_the_same_prediction(
    scheduler: SchedulerProcess,
) -> None:
    scheduler.storage.models.register("alice/tokens", is_iterator=True)
    worker = await scheduler.worker(behaviour=forever)
    created = await scheduler.create("{}", version="alice/tokens")
    await scheduler.watch(created.id, until=lambda item: item.status == PROCESSING)
    item = events_pb2.RunOutput(items=[json_pb2.Json(text='"a"')])
    log = events_pb2.RunLogged(text="line\n")
    bus = await scheduler.bus()

    async def is_answered(*events: events_pb2.RunEvent) -> bool:
        report = events_pb2.RunsReported(worker_id=worker.worker_id, events=events)
        try:
            await bus.request(report, 1)
        except Unavailable:
            return False
        return True

    # The third step before the second: not acknowledged, not taken.
    assert not await is_answered(event(created.id, 3, logged=log))
    assert await is_answered(event(created.id, 2, output=item))
    assert await is_answered(event(created.id, 2, output=item), event(created.id, 3, logged=log))
    assert await is_answered(event(created.id, 3, logged=log))
    final = event(created.id, 4, completed=succeeded())
    assert await is_answered(final)
    assert await is_answered(final)
    ended = await scheduler.end_of(created.id)
    assert ended.output.text == '["a"]'
    assert ended.logs == "line\n"
    await scheduler.receipt(created.id)


async def test_kill_9_of_the_scheduler_in_mid_run_loses_nothing_and_settles_once(
    scheduler: SchedulerProcess,
) -> None:
    go_on = asyncio.Event()

    async def behaviour(run: Run) -> events_pb2.RunCompleted:
        run.output('"a"')
        run.log("half\n")
        await go_on.wait()
        run.output('"b"')
        return succeeded()

    scheduler.storage.models.register("alice/tokens", is_iterator=True)
    worker = await scheduler.worker(behaviour=behaviour)
    running = await scheduler.create("{}", version="alice/tokens")
    waiting = await scheduler.create("{}", version="alice/tokens")
    await scheduler.watch(running.id, until=lambda item: item.logs == "half\n")
    await scheduler.kill()
    go_on.set()
    await scheduler.start()
    for prediction in (running, waiting):
        ended = await scheduler.end_of(prediction.id)
        assert ended.status == SUCCEEDED
        assert ended.output.text == '["a","b"]'
        assert ended.logs == "half\n"
        await scheduler.receipt(prediction.id)
    assert sorted(lease.attempt for lease in worker.leases_heard) == [1, 1]
    rows = scheduler.rows("SELECT count(*) FROM prediction_chunks")
    assert rows[0][0] == 0


async def test_ends_that_were_not_settled_before_a_kill_are_settled_after_it(
    scheduler: SchedulerProcess,
) -> None:
    go_on = asyncio.Event()

    async def behaviour(run: Run) -> events_pb2.RunCompleted:
        await go_on.wait()
        return succeeded("1")

    await scheduler.worker(behaviour=behaviour)
    created = await scheduler.create(request_id="r")
    scheduler.billing.is_down = True
    go_on.set()
    await scheduler.end_of(created.id)
    await scheduler.kill()
    scheduler.billing.is_down = False
    await scheduler.start()
    assert (await scheduler.receipt(created.id)).is_captured
    # The caller's repeat after the restart is the same prediction.
    assert (await scheduler.create(wait_s=20, request_id="r")).id == created.id


async def test_many_predictions_survive_kills_of_everything(scheduler: SchedulerProcess) -> None:
    async def behaviour(run: Run) -> events_pb2.RunCompleted:
        await asyncio.sleep(0.01)
        return succeeded(run.lease.input.text)

    worker = await scheduler.worker("w0", host_id="h", slot_count=4, behaviour=behaviour)
    creates = [asyncio.create_task(scheduler.create(request_id=f"r{index}")) for index in range(60)]
    created = await asyncio.gather(*creates)
    await scheduler.kill()
    await worker.kill()
    scheduler.nats.kill()
    await scheduler.nats.start()
    await scheduler.start()
    await scheduler.worker("w1", host_id="h", slot_count=4, behaviour=behaviour)
    await scheduler.kill()
    await scheduler.start()
    for prediction in created:
        ended = await scheduler.end_of(prediction.id)
        assert ended.status == SUCCEEDED
        await scheduler.receipt(prediction.id)
    assert len({prediction.id for prediction in created}) == 60
    rows = scheduler.rows("SELECT count(*) FROM predictions WHERE completed_at IS NOT NULL")
    assert rows[0][0] == 60
    assert set(scheduler.billing.receipts) == {prediction.id for prediction in created}


async def test_a_bus_that_is_away_for_long_costs_no_attempt(scheduler: SchedulerProcess) -> None:
    go_on = asyncio.Event()

    async def behaviour(run: Run) -> events_pb2.RunCompleted:
        await go_on.wait()
        return succeeded("1")

    worker = await scheduler.worker(behaviour=behaviour)
    created = await scheduler.create()
    await scheduler.watch(created.id, until=lambda item: item.status == PROCESSING)
    scheduler.nats.kill()
    with pytest.raises(TimeoutError):
        # Longer than the heartbeat timeout; nothing may happen.
        await scheduler.watch(created.id, until=lambda item: item.status != PROCESSING, timeout_s=4)
    await scheduler.nats.start()
    go_on.set()
    ended = await scheduler.end_of(created.id)
    assert ended.status == SUCCEEDED
    assert [lease.attempt for lease in worker.leases_heard] == [1]


async def test_a_scheduler_that_stood_still_takes_no_lease_away(
    scheduler: SchedulerProcess,
) -> None:
    go_on = asyncio.Event()

    async def behaviour(run: Run) -> events_pb2.RunCompleted:
        await go_on.wait()
        return succeeded("1")

    worker = await scheduler.worker(behaviour=behaviour)
    created = await scheduler.create()
    await scheduler.watch(created.id, until=lambda item: item.status == PROCESSING)
    assert scheduler.process is not None
    scheduler.process.send_signal(signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        # Longer than the heartbeat timeout.
        async with asyncio.timeout(4):
            await scheduler.get(created.id)
    scheduler.process.send_signal(signal.SIGCONT)
    go_on.set()
    assert (await scheduler.end_of(created.id)).status == SUCCEEDED
    assert [lease.attempt for lease in worker.leases_heard] == [1]


async def test_a_replaced_worker_that_wakes_up_takes_nothing_from_its_successor(
    scheduler: SchedulerProcess,
) -> None:
    go_on = asyncio.Event()

    async def behaviour(run: Run) -> events_pb2.RunCompleted:
        await go_on.wait()
        return succeeded("1")

    first = await scheduler.worker("w1", host_id="h", behaviour=forever)
    created = await scheduler.create()
    await scheduler.watch(created.id, until=lambda item: item.status == PROCESSING)
    first.is_silent = True
    second = await scheduler.worker("w2", host_id="h", behaviour=behaviour)
    await until_leased(second, created.id)
    await scheduler.watch(created.id, until=lambda item: item.status == PROCESSING)
    first.is_silent = False
    async with asyncio.timeout(10):
        await first.runs[created.id].revoked.wait()
    go_on.set()
    assert (await scheduler.end_of(created.id)).status == SUCCEEDED
    assert [lease.attempt for lease in second.leases_heard] == [2]


async def test_a_worker_that_stops_in_good_order_frees_its_leases_at_once(
    scheduler: SchedulerProcess,
) -> None:
    await scheduler.kill()
    scheduler.settings["HEARTBEAT_TIMEOUT_S"] = "60"
    await scheduler.start()
    first = await scheduler.worker("w1", behaviour=forever)
    created = await scheduler.create()
    await scheduler.watch(created.id, until=lambda item: item.status == PROCESSING)
    await first.kill()
    await scheduler.worker("w2")
    bus = await scheduler.bus()
    await bus.publish(events_pb2.WorkerStopped(worker_id="w1"))
    assert (await scheduler.end_of(created.id)).status == SUCCEEDED


async def test_a_large_input_reaches_its_worker_whole(scheduler: SchedulerProcess) -> None:
    await scheduler.worker()
    text = "x" * 600_000
    ended = await scheduler.create(f'{{"text":"{text}"}}', wait_s=20)
    assert ended.output.text == f'{{"text":"{text}"}}'


async def test_a_lease_that_the_scheduler_does_not_know_is_revoked(
    scheduler: SchedulerProcess,
) -> None:
    worker = await scheduler.worker()
    lease = scheduler_events_pb2.Lease(prediction_id="unknown", attempt=1)
    run = worker.runs["unknown"] = Run(worker, lease)
    async with asyncio.timeout(10):
        await run.revoked.wait()


async def test_a_version_without_a_place_gets_one_of_a_busy_version(
    scheduler: SchedulerProcess,
) -> None:
    async def behaviour(run: Run) -> events_pb2.RunCompleted:
        await asyncio.sleep(0.05)
        return succeeded("1", run_us=50_000)

    await scheduler.worker(replica_count_max=1, behaviour=behaviour)
    busy = [await scheduler.create(request_id=f"b{index}") for index in range(100)]
    scheduler.storage.models.register("alice/other")
    other = await scheduler.create("{}", version="alice/other")
    assert (await scheduler.end_of(other.id)).status == SUCCEEDED
    # It did not have to wait for all of the busy version's backlog.
    assert (await scheduler.get(busy[-1].id)).status != SUCCEEDED
    assert (await scheduler.end_of(busy[-1].id)).status == SUCCEEDED
