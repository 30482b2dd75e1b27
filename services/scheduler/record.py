"""One prediction's row in memory, and the message that callers get of it."""

import hashlib
from base64 import b32encode
from dataclasses import dataclass
from uuid import uuid4

import orjson
from google.protobuf.timestamp_pb2 import Timestamp
from reprise.scheduler.v1 import prediction_pb2
from reprise.wire.v1 import json_pb2

from services.chassis.clock import timestamp
from services.scheduler import event_stream
from services.scheduler.lifecycle import STARTING, Status, is_final

ID_LENGTH = 26


def prediction_id_of(account_id: str, request_id: str) -> str:
    """The same request of the same account is the same prediction."""
    digest = hashlib.sha256(f"{account_id}|{request_id or uuid4().hex}".encode()).digest()
    # 20 bytes give 32 characters, of which the id is the first 26.
    return b32encode(digest[:20]).decode().lower()[:ID_LENGTH]


@dataclass(slots=True)
class PredictionRecord:
    """The columns of one row; changed only by the loop that commits the change."""

    id: str
    account_id: str
    model: str
    version_id: str
    hardware: str
    is_iterator: bool
    has_file_output: bool
    input: str
    created_at: int
    deadline_at: int | None
    source: str
    webhook: str | None
    # Comma-separated.
    webhook_events_filter: str
    traceparent: str
    run_timeout_ms: int
    price_micros_per_second: int
    held_amount_micros: int

    status: Status = STARTING
    # 0 before the first lease.
    attempt: int = 0
    fault_count: int = 0
    worker_id: str | None = None
    started_at: int | None = None
    completed_at: int | None = None
    output: str | None = None
    logs: str = ""
    error: str | None = None
    metrics: str | None = None

    # The outbox: set with the final status, sent to billing until settled_at is set.
    charged_ms: int = 0
    release_reason: str = ""
    settled_at: int | None = None
    ledger_entry_id: str | None = None
    captured_amount_micros: int | None = None


def metrics_text(record: PredictionRecord, *, run_us: int | None, own: str) -> str:
    """Run and total time in seconds, after the model's own numbers."""
    assert record.completed_at is not None
    metrics: dict[str, object] = {}
    if own:
        try:
            parsed = orjson.loads(own)
        except orjson.JSONDecodeError:
            parsed = {}
        metrics = parsed if isinstance(parsed, dict) else {}
    if run_us is not None:
        metrics["predict_time"] = run_us / 1e6
    metrics["total_time"] = max(record.completed_at - record.created_at, 0) / 1e6
    return orjson.dumps(metrics).decode()


def to_message(record: PredictionRecord, stream_key: bytes) -> prediction_pb2.Prediction:
    """The prediction as callers see it, without its queue card."""
    message = prediction_pb2.Prediction(
        id=record.id,
        model=record.model,
        version=record.version_id,
        input=json_pb2.Json(text=record.input),
        logs=record.logs,
        error=record.error,
        status=record.status,
        created_at=_optional_timestamp(record.created_at),
        started_at=_optional_timestamp(record.started_at),
        completed_at=_optional_timestamp(record.completed_at),
        metrics=json_pb2.Json(text=record.metrics or "{}"),
        source=record.source,
        deadline=_optional_timestamp(record.deadline_at),
        webhook=record.webhook,
        urls=_urls(record, stream_key),
        cost=_cost(record),
    )
    if record.output is not None:
        message.output.text = record.output
    if record.webhook_events_filter:
        message.webhook_events_filter.extend(record.webhook_events_filter.split(","))
    return message


def timed_out_wait(message: prediction_pb2.Prediction) -> prediction_pb2.Prediction:
    """The answer of a wait that ran out: clients take any other status for the end."""
    message.status = STARTING
    message.ClearField("output")
    return message


def _urls(record: PredictionRecord, stream_key: bytes) -> dict[str, str]:
    path = f"/v1/predictions/{record.id}"
    urls = {"get": path, "cancel": f"{path}/cancel", "web": f"/p/{record.id}"}
    if record.is_iterator:
        token = event_stream.stream_token(record.id, stream_key)
        # Clients tell file streams from text streams by this path.
        prefix = "/v1/files/streams/" if record.has_file_output else "/v1/streams/"
        urls["stream"] = prefix + token
    return urls


def _cost(record: PredictionRecord) -> prediction_pb2.Cost:
    return prediction_pb2.Cost(
        hardware=record.hardware,
        price_micros_per_second=record.price_micros_per_second,
        held_amount_micros=record.held_amount_micros,
        status=_cost_status(record),
        captured_amount_micros=record.captured_amount_micros,
        charged_ms=record.charged_ms if is_final(record.status) else 0,
        ledger_entry_id=record.ledger_entry_id,
    )


def _cost_status(record: PredictionRecord) -> prediction_pb2.CostStatus.ValueType:
    if record.settled_at is None:
        return prediction_pb2.COST_STATUS_HELD
    if record.release_reason:
        return prediction_pb2.COST_STATUS_RELEASED
    return prediction_pb2.COST_STATUS_CAPTURED


def _optional_timestamp(at: int | None) -> Timestamp | None:
    return None if at is None else timestamp(at)
