"""Predictions from create to receipt, seen from outside."""

import asyncio
import json

import pytest
from google.protobuf.duration_pb2 import Duration
from reprise.billing.v1 import ledger_pb2
from reprise.inference.v1 import events_pb2
from reprise.scheduler.v1 import events_pb2 as scheduler_events_pb2
from reprise.scheduler.v1 import (
    hardware_pb2,
    hardware_pb2_grpc,
    prediction_pb2,
)

from services.chassis.errors import InvalidInput, NotFound, ResourceExhausted
from services.chassis.paging import encode_cursor
from tests.doubles.worker import Run, failed, succeeded
from tests.integration.scheduler.process import (
    CANCELED,
    FAILED,
    PROCESSING,
    STARTING,
    SUCCEEDED,
    SchedulerProcess,
    eventually,
)


async def until_revoked(run: Run) -> events_pb2.RunCompleted:
    await run.revoked.wait()
    return events_pb2.RunCompleted(outcome=events_pb2.RUN_OUTCOME_CANCELED)


async def test_a_waited_create_answers_the_output_and_the_money_is_captured(
    scheduler: SchedulerProcess,
) -> None:
    await scheduler.worker()
    prediction = await scheduler.create('{"text":"hi","count":3}', wait_s=20)
    assert prediction.status == SUCCEEDED
    assert json.loads(prediction.output.text) == {"text": "hi", "count": 3}
    assert prediction.model == "alice/echo"
    assert not prediction.HasField("error")
    metrics = json.loads(prediction.metrics.text)
    assert metrics["predict_time"] == 0.001
    assert metrics["total_time"] > 0
    assert set(prediction.urls) == {"get", "cancel", "web"}
    receipt = await scheduler.receipt(prediction.id)
    assert receipt.is_captured
    assert receipt.charged_ms == 1

    async def has_receipt() -> bool:
        cost = (await scheduler.get(prediction.id)).cost
        return (
            cost.status == prediction_pb2.COST_STATUS_CAPTURED
            and cost.ledger_entry_id == receipt.ledger_entry_id
        )

    await eventually(has_receipt)


async def test_a_repeat_of_the_request_is_the_same_prediction_during_and_after_the_run(
    scheduler: SchedulerProcess,
) -> None:
    worker = await scheduler.worker()
    first, second = await asyncio.gather(
        scheduler.create(wait_s=20, request_id="r1"), scheduler.create(wait_s=20, request_id="r1")
    )
    await scheduler.receipt(first.id)
    third = await scheduler.create(wait_s=20, request_id="r1")
    assert first.id == second.id == third.id
    assert third.status == SUCCEEDED
    assert len(worker.leases_heard) == 1
    other = await scheduler.create(wait_s=20, request_id="r1", account_id="carol")
    assert other.id != first.id


async def test_logs_and_items_are_seen_while_the_run_goes_on(scheduler: SchedulerProcess) -> None:
    go_on = asyncio.Event()

    async def behaviour(run: Run) -> events_pb2.RunCompleted:
        run.log("half\n")
        run.output('"a"')
        await go_on.wait()
        run.output('"b"', "3")
        run.log("all\n")
        return succeeded()

    spec = scheduler.storage.models.register("alice/tokens", is_iterator=True)
    await scheduler.worker(behaviour=behaviour)
    created = await scheduler.create("{}", version="alice/tokens")
    assert spec.version_id == created.version
    running = await scheduler.watch(created.id, until=lambda item: item.output.text == '["a"]')
    assert running.status == PROCESSING
    assert running.logs == "half\n"
    assert scheduler.rows("SELECT count(*) FROM prediction_chunks")[0][0] >= 1
    go_on.set()
    ended = await scheduler.end_of(created.id)
    assert ended.output.text == '["a","b",3]'
    assert ended.logs == "half\nall\n"
    assert (await scheduler.get(created.id)).output.text == '["a","b",3]'
    assert scheduler.rows("SELECT count(*) FROM prediction_chunks")[0][0] == 0


async def test_a_wait_that_runs_out_answers_starting_without_output(
    scheduler: SchedulerProcess,
) -> None:
    async def behaviour(run: Run) -> events_pb2.RunCompleted:
        run.output('"a"')
        await asyncio.Event().wait()
        raise AssertionError

    scheduler.storage.models.register("alice/tokens", is_iterator=True)
    await scheduler.worker(behaviour=behaviour)
    warm = await scheduler.create("{}", version="alice/tokens")
    await scheduler.watch(warm.id, until=lambda item: item.output.text == '["a"]')
    answer = await scheduler.create(
        "{}", version="alice/tokens", wait_s=0.3, request_id="again", account_id="bob"
    )
    assert answer.status == STARTING
    running = await scheduler.create("{}", version="alice/tokens", wait_s=0.1, request_id="again")
    assert running.status == STARTING
    assert not running.HasField("output")


@pytest.mark.parametrize(
    ("input_text", "field", "kind"),
    [
        ("{}", "input", "required"),
        ('{"text":1}', "input.text", "invalid_type"),
        ('{"text":"a","count":10}', "input.count", "number_lte"),
        ('{"text":"a","mode":"odd"}', "input.mode", "enum"),
        ('{"text":"a","more":1}', "input.more", "additional_property_not_allowed"),
        ("[1]", "input", "invalid_type"),
        ("{", "input", "invalid_json"),
    ],
)
async def test_a_bad_input_is_refused_by_field_and_costs_nothing(
    scheduler: SchedulerProcess, input_text: str, field: str, kind: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        await scheduler.create(input_text)
    assert [(item.field, item.kind) for item in caught.value.fields] == [(field, kind)]
    assert scheduler.billing.holds == {}


async def test_bad_requests_name_their_field(scheduler: SchedulerProcess) -> None:
    with pytest.raises(InvalidInput, match="webhook"):
        await scheduler.create(webhook="ftp://example.com")
    with pytest.raises(InvalidInput, match="cancel_after"):
        await scheduler.create(cancel_after=Duration(seconds=1))
    with pytest.raises(InvalidInput) as caught:
        await scheduler.create(version="nobody/nothing")
    assert caught.value.reason == "INVALID_VERSION"
    with pytest.raises(NotFound):
        await scheduler.create(version="", model_owner="nobody", model_name="nothing")
    scheduler.storage.models.register("alice/secret", is_private=True)
    with pytest.raises(InvalidInput):
        await scheduler.create("{}", version="alice/secret")


async def test_the_same_content_in_two_models_shows_each_caller_its_own_models_name(
    scheduler: SchedulerProcess,
) -> None:
    # A version's id is the hash of its content, so a private model of alice and a model of carol
    # share it; storage answers each of them with their own.
    models = scheduler.storage.models
    spec = models.register("alice/secret", is_private=True)
    first = await scheduler.create("{}", account_id="alice", version=spec.version_id)
    assert first.model == "alice/secret"
    models.models["carol/copy"] = models.models.pop("alice/secret")
    spec.owner, spec.model = "carol", "carol/copy"
    second = await scheduler.create("{}", account_id="carol", version=spec.version_id)
    assert second.model == "carol/copy"


async def test_without_credit_nothing_is_created(scheduler: SchedulerProcess) -> None:
    scheduler.billing.refusals["bob"] = "INSUFFICIENT_CREDIT"
    with pytest.raises(ResourceExhausted) as caught:
        await scheduler.create()
    assert caught.value.reason == "INSUFFICIENT_CREDIT"
    assert scheduler.rows("SELECT count(*) FROM predictions")[0][0] == 0


async def test_a_full_backlog_refuses_with_its_reason(scheduler: SchedulerProcess) -> None:
    await scheduler.kill()
    scheduler.settings["BACKLOG_SIZE_MAX"] = "2"
    await scheduler.start()
    first, second = await scheduler.create(), await scheduler.create()
    assert first.queue.reason == prediction_pb2.QUEUE_REASON_NO_HARDWARE
    assert second.queue.position == 2
    with pytest.raises(ResourceExhausted) as caught:
        await scheduler.create()
    assert caught.value.reason == "BACKLOG_FULL"


async def test_a_waiting_prediction_is_canceled_free_and_for_good(
    scheduler: SchedulerProcess,
) -> None:
    created = await scheduler.create()
    canceled = await scheduler.cancel(created.id)
    assert canceled.status == CANCELED
    assert not canceled.HasField("started_at")
    assert canceled.HasField("completed_at")
    assert not (await scheduler.receipt(created.id)).is_captured
    assert (await scheduler.cancel(created.id)).status == CANCELED
    worker = await scheduler.worker()
    await scheduler.create(wait_s=20)
    assert [lease.prediction_id for lease in worker.leases_heard] != [created.id]


async def test_a_canceled_run_is_charged_until_the_cancel_and_frees_its_slot(
    scheduler: SchedulerProcess,
) -> None:
    worker = await scheduler.worker(behaviour=until_revoked)
    created = await scheduler.create()
    await scheduler.watch(created.id, until=lambda item: item.status == PROCESSING)
    canceled = await scheduler.cancel(created.id)
    assert canceled.status == CANCELED
    receipt = await scheduler.receipt(created.id)
    assert receipt.is_captured
    assert receipt.charged_ms >= 1
    worker.behaviour = lambda run: _answer(run, "7")
    following = await scheduler.create(wait_s=10)
    assert following.output.text == "7"


async def _answer(run: Run, output: str) -> events_pb2.RunCompleted:
    return succeeded(output)


async def test_cancel_after_ends_a_waiting_prediction_with_a_line_in_its_logs(
    scheduler: SchedulerProcess,
) -> None:
    created = await scheduler.create(cancel_after=Duration(seconds=5))
    assert created.deadline.seconds - created.created_at.seconds == 5
    ended = await scheduler.end_of(created.id)
    assert ended.status == CANCELED
    assert "deadline" in ended.logs
    assert not (await scheduler.receipt(created.id)).is_captured


@pytest.mark.parametrize(
    ("blame", "is_captured"),
    [
        (events_pb2.BLAME_MODEL, True),
        (events_pb2.BLAME_TIMEOUT, True),
        (events_pb2.BLAME_INPUT, False),
    ],
)
async def test_who_is_to_blame_decides_who_pays(
    scheduler: SchedulerProcess, blame: events_pb2.Blame.ValueType, is_captured: bool
) -> None:
    async def behaviour(run: Run) -> events_pb2.RunCompleted:
        return failed("it broke", blame)

    await scheduler.worker(behaviour=behaviour)
    ended = await scheduler.create(wait_s=20)
    assert ended.status == FAILED
    assert ended.error == "it broke"
    assert (await scheduler.receipt(ended.id)).is_captured == is_captured


async def test_a_platform_fault_is_tried_three_times_and_never_charged(
    scheduler: SchedulerProcess,
) -> None:
    async def behaviour(run: Run) -> events_pb2.RunCompleted:
        return failed("engine host gone", events_pb2.BLAME_PLATFORM)

    worker = await scheduler.worker(behaviour=behaviour)
    ended = await scheduler.create(wait_s=20)
    assert ended.status == FAILED
    assert "fault of the platform" in ended.error
    assert [lease.attempt for lease in worker.leases_heard] == [1, 2, 3]
    assert not (await scheduler.receipt(ended.id)).is_captured


async def test_a_version_that_cannot_be_loaded_fails_what_waits_for_it(
    scheduler: SchedulerProcess,
) -> None:
    worker = await scheduler.worker()
    worker.setup_errors[scheduler.spec.version_id] = "no module named torch"
    ended = await scheduler.create(wait_s=20)
    assert ended.status == FAILED
    assert ended.error == "no module named torch"
    assert not (await scheduler.receipt(ended.id)).is_captured
    worker.setup_errors.clear()
    assert (await scheduler.create(wait_s=20)).status == SUCCEEDED


async def test_streams_resume_after_an_event_and_replay_after_the_end(
    scheduler: SchedulerProcess,
) -> None:
    go_on = asyncio.Event()

    async def behaviour(run: Run) -> events_pb2.RunCompleted:
        run.output('"a"', '"b\\nc"')
        await go_on.wait()
        run.output('{"d":1}')
        return succeeded()

    scheduler.storage.models.register("alice/tokens", is_iterator=True)
    await scheduler.worker(behaviour=behaviour)
    created = await scheduler.create("{}", version="alice/tokens")
    live = scheduler.stream(created)
    first, second = await anext(live), await anext(live)
    assert [first.data, second.data] == ["a", "b\nc"]
    assert first.id == f"{created.created_at.seconds}:0"
    go_on.set()
    rest = [event async for event in live]
    assert [(event.event, event.data) for event in rest] == [("output", '{"d":1}'), ("done", "{}")]
    replay = [event async for event in scheduler.stream(created, last_event_id=first.id)]
    assert replay == [second, *rest]
    created.urls["stream"] = f"/v1/streams/{created.id}{'0' * 32}"
    with pytest.raises(NotFound):
        await anext(scheduler.stream(created))


async def test_the_stream_of_a_failed_run_ends_with_error_and_done(
    scheduler: SchedulerProcess,
) -> None:
    async def behaviour(run: Run) -> events_pb2.RunCompleted:
        run.output('"a"')
        return failed("boom")

    scheduler.storage.models.register("alice/tokens", is_iterator=True, has_file_output=True)
    await scheduler.worker(behaviour=behaviour)
    created = await scheduler.create("{}", version="alice/tokens")
    assert created.urls["stream"].startswith("/v1/files/streams/")
    events = [(event.event, event.data) async for event in scheduler.stream(created)]
    assert events == [
        ("output", "a"),
        ("error", '{"detail": "boom"}'),
        ("done", '{"reason":"error"}'),
    ]


async def test_lists_go_forth_and_back_with_their_filters(scheduler: SchedulerProcess) -> None:
    ids = [(await scheduler.create()).id for _ in range(5)]
    await scheduler.create(account_id="carol")
    pages: list[list[str]] = []
    token = ""
    request = prediction_pb2.ListPredictionsRequest(page_size=2)
    tokens = []
    while True:
        request.page_token = token
        response = await scheduler.peer().call(
            scheduler.stub().ListPredictions, request, timeout_s=10, account_id="bob"
        )
        pages.append([item.id for item in response.predictions])
        tokens.append(response.previous_page_token)
        token = response.next_page_token
        if not token:
            break
    newest_first = ids[::-1]
    assert pages == [newest_first[:2], newest_first[2:4], newest_first[4:]]
    assert tokens[0] == ""
    request.page_token = tokens[2]
    back = await scheduler.peer().call(
        scheduler.stub().ListPredictions, request, timeout_s=10, account_id="bob"
    )
    assert [item.id for item in back.predictions] == pages[1]
    filtered = prediction_pb2.ListPredictionsRequest(
        page_size=2, source="api", created_after=(await scheduler.get(ids[2])).created_at
    )
    first = await scheduler.peer().call(
        scheduler.stub().ListPredictions, filtered, timeout_s=10, account_id="bob"
    )
    # The cursor knows the filters: it alone leads to the rest.
    rest = await scheduler.peer().call(
        scheduler.stub().ListPredictions,
        prediction_pb2.ListPredictionsRequest(page_token=first.next_page_token),
        timeout_s=10,
        account_id="bob",
    )
    assert [item.id for item in (*first.predictions, *rest.predictions)] == newest_first[:3]
    with pytest.raises(NotFound):
        await scheduler.get(ids[0], account_id="carol")
    request.page_token = encode_cursor({"at": "yesterday", "id": "x"})
    with pytest.raises(InvalidInput, match="page_token"):
        await scheduler.peer().call(
            scheduler.stub().ListPredictions, request, timeout_s=10, account_id="bob"
        )


async def test_ended_predictions_are_published(scheduler: SchedulerProcess) -> None:
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def note(event: scheduler_events_pb2.PredictionsCompleted) -> None:
        for item in event.predictions:
            await seen.put(item.prediction_id)

    bus = await scheduler.bus()
    await bus.consume(scheduler_events_pb2.PredictionsCompleted, note, durable="test")
    await scheduler.worker()
    ended = await scheduler.create(wait_s=20)
    async with asyncio.timeout(20):
        assert await seen.get() == ended.id


async def test_workers_and_their_hardware_are_listed(scheduler: SchedulerProcess) -> None:
    await scheduler.worker("w1", hardware="gpu-x")
    stub = hardware_pb2_grpc.HardwareServiceStub(scheduler.peer().channel)

    async def is_listed() -> bool:
        listed = await scheduler.peer().call(
            stub.ListHardware, hardware_pb2.ListHardwareRequest(), timeout_s=10
        )
        return [item.sku for item in listed.hardware] == ["cpu", "gpu-x"]

    await eventually(is_listed)
    workers = await scheduler.peer().call(
        stub.ListWorkers, hardware_pb2.ListWorkersRequest(), timeout_s=10
    )
    assert [(item.id, item.hardware) for item in workers.workers] == [("w1", "gpu-x")]


async def test_billing_out_of_reach_settles_later_and_once(scheduler: SchedulerProcess) -> None:
    go_on = asyncio.Event()

    async def behaviour(run: Run) -> events_pb2.RunCompleted:
        await go_on.wait()
        return succeeded("1")

    await scheduler.worker(behaviour=behaviour)
    created = await scheduler.create()
    scheduler.billing.is_down = True
    go_on.set()
    assert (await scheduler.end_of(created.id)).status == SUCCEEDED
    scheduler.billing.is_down = False
    assert (await scheduler.receipt(created.id)).is_captured


async def test_an_old_hold_without_a_row_is_given_back(scheduler: SchedulerProcess) -> None:
    await scheduler.kill()
    scheduler.billing.holds["orphan"] = ledger_pb2.NewHold(
        hold_id="orphan", account_id="bob", hardware="cpu", run_ms_max=1000
    )
    scheduler.settings |= {"ORPHAN_HOLD_AGE_S": "0", "SWEEP_INTERVAL_S": "0.2"}
    await scheduler.start()
    created = await scheduler.create()
    receipt = await scheduler.receipt("orphan")
    assert not receipt.is_captured
    assert created.id not in scheduler.billing.receipts
