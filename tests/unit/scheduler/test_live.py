"""Predictions in memory: what callers see, and who is woken."""

import asyncio

from services.scheduler import lifecycle
from services.scheduler.live import LivePrediction
from services.scheduler.record import PredictionRecord, timed_out_wait, to_message
from services.scheduler.recovery import restore
from services.scheduler.store import StoredChunk


def record(**fields: object) -> PredictionRecord:
    values = {
        "id": "p" * 26,
        "account_id": "bob",
        "model": "a/b",
        "version_id": "v",
        "hardware": "cpu",
        "is_iterator": True,
        "has_file_output": False,
        "input": "{}",
        "created_at": 1_000_000,
        "deadline_at": None,
        "source": "api",
        "webhook": None,
        "webhook_events_filter": "",
        "traceparent": "",
        "run_timeout_ms": 1000,
        "price_micros_per_second": 100,
        "held_amount_micros": 100,
    } | fields
    return PredictionRecord(**values)  # type: ignore[arg-type]  # columns by name


def test_the_output_of_a_lost_attempt_stays_until_the_next_has_caught_up() -> None:
    live = LivePrediction(record())
    live.add_items(['"a"', '"b"'])
    live.void_attempt()
    seen = [len(live.shown_items)]
    for item in ('"a"', '"b"', '"c"'):
        live.add_items([item])
        seen.append(len(live.shown_items))
    assert seen == [2, 2, 2, 3]
    assert live.snapshot().output == '["a","b","c"]'


def test_logs_are_bounded_and_say_so() -> None:
    live = LivePrediction(record())
    assert live.add_logs("12345", 8) == "12345"
    live.add_logs("67890", 8)
    assert live.add_logs("more", 8) == ""
    assert live.logs_text() == "12345678\n[logs truncated]\n"


async def test_waiters_are_woken_by_the_end_and_by_their_time() -> None:
    live = LivePrediction(record())
    assert not await live.wait_end(0.01)
    waiting = asyncio.create_task(live.wait_end(10))
    await asyncio.sleep(0)
    live.record.completed_at = 2_000_000
    live.wake_all()
    assert await waiting
    assert await live.wait_end(0)


async def test_a_change_between_look_and_wait_is_not_missed() -> None:
    live = LivePrediction(record())
    seen = live.change_count
    live.wake_changed()
    assert await live.wait_change(seen, 10)


def test_a_wait_that_ran_out_is_answered_as_starting_without_output() -> None:
    live = LivePrediction(record(status=lifecycle.PROCESSING))
    live.add_items(['"a"'])
    message = timed_out_wait(live.message(b"key"))
    assert message.status == lifecycle.STARTING
    assert not message.HasField("output")


def test_only_iterators_have_a_stream_and_its_path_tells_files() -> None:
    assert "stream" not in to_message(record(is_iterator=False), b"key").urls
    assert to_message(record(), b"key").urls["stream"].startswith("/v1/streams/")
    files = to_message(record(has_file_output=True), b"key")
    assert files.urls["stream"].startswith("/v1/files/streams/")


def test_a_restart_goes_on_after_the_last_stored_step_of_the_attempt() -> None:
    chunks = [
        StoredChunk(attempt=1, sequence=4, logs="one\n", items=['"old"']),
        StoredChunk(attempt=2, sequence=3, logs="two\n", items=['"a"']),
    ]
    running = record(status=lifecycle.PROCESSING, attempt=2, worker_id="w")
    live = restore(running, chunks)
    assert live.sequence == 3
    assert live.items == ['"a"']
    assert live.logs_text() == "one\ntwo\n"
    assert restore(record(status=lifecycle.PROCESSING, worker_id="w"), []).sequence == 1
    assert restore(record(attempt=1), chunks[:1]).items == []
