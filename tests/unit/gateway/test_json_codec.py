"""Messages to JSON and back: every construct of the protos."""

from typing import Any

import orjson
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from reprise.billing.v1 import ledger_pb2
from reprise.scheduler.v1 import prediction_pb2
from reprise.storage.v1 import file_pb2, model_pb2

from services.gateway.json_codec import (
    enum_names,
    format_timestamp,
    message_decoder,
    message_encoder,
)

BASE = "https://h"


def _json(message: Any) -> Any:
    return orjson.loads(orjson.dumps(message_encoder(message.DESCRIPTOR)(message, BASE)))


def _fill(message: Any, values: dict[str, Any]) -> list[tuple[str, str]]:
    violations = message_decoder(message.DESCRIPTOR).fill(message, values, {})
    return [(item.field, item.kind) for item in violations]


def test_an_empty_prediction_has_every_key_in_order_and_null_where_unset() -> None:
    value = _json(prediction_pb2.Prediction())
    assert list(value) == [field.name for field in prediction_pb2.Prediction.DESCRIPTOR.fields]
    nulls = {name for name, item in value.items() if item is None}
    assert nulls == {
        *("input", "output", "error", "status", "created_at", "started_at", "completed_at"),
        *("metrics", "deadline", "deployment", "webhook", "queue", "cost"),
    }
    assert (value["logs"], value["urls"], value["webhook_events_filter"]) == ("", {}, [])


def test_a_full_prediction_is_as_replicate_writes_it() -> None:
    prediction = prediction_pb2.Prediction(
        status=prediction_pb2.PREDICTION_STATUS_SUCCEEDED,
        created_at=Timestamp(seconds=1_700_000_000, nanos=1_234_567),
        urls={"get": "/v1/predictions/x", "elsewhere": "https://other/y"},
        error="",
        webhook_events_filter=["start"],
    )
    prediction.input.text = '{"b": 1.0, "a": 123456789012345678901}'
    prediction.queue.reason = prediction_pb2.QUEUE_REASON_COLD_START
    prediction.cost.captured_amount_micros = 0
    text = orjson.dumps(message_encoder(prediction.DESCRIPTOR)(prediction, BASE)).decode()
    assert '"input":{"b": 1.0, "a": 123456789012345678901}' in text
    value = orjson.loads(text)
    assert value["status"] == "succeeded"
    assert value["created_at"] == "2023-11-14T22:13:20.001234Z"
    assert value["urls"] == {"get": "https://h/v1/predictions/x", "elsewhere": "https://other/y"}
    assert value["error"] == ""
    assert value["queue"]["reason"] == "cold_start"
    assert (value["cost"]["captured_amount_micros"], value["cost"]["ledger_entry_id"]) == (0, None)


def test_large_integers_stay_integers() -> None:
    assert _json(ledger_pb2.Credit(balance_micros=2**62))["balance_micros"] == 2**62


def test_nested_messages_and_plain_paths_are_absolute() -> None:
    model = model_pb2.Model(url="/acme/echo", latest_version=model_pb2.Version(id="v"))
    value = _json(model)
    assert value["url"] == "https://h/acme/echo"
    assert value["latest_version"]["kind"] is None
    assert value["default_example"] is None
    assert _json(file_pb2.File(checksums={"md5": "x"}))["checksums"] == {"md5": "x"}


def test_enum_words_lose_their_prefix() -> None:
    names = enum_names(ledger_pb2.DESCRIPTOR.enum_types_by_name["LedgerEntryKind"])
    assert names == {0: None, 1: "credit", 2: "hold", 3: "capture", 4: "release"}


@pytest.mark.parametrize(
    ("nanos", "text"), [(0, ".000000Z"), (999_999_999, ".999999Z"), (1_000, ".000001Z")]
)
def test_times_have_microseconds(nanos: int, text: str) -> None:
    assert format_timestamp(Timestamp(seconds=0, nanos=nanos)) == "1970-01-01T00:00:00" + text


def test_every_kind_of_field_can_be_set() -> None:
    request = prediction_pb2.CreatePredictionRequest()
    values = {
        "version": "v",
        "input": {"x": [1, None]},
        "webhook_events_filter": ["start", "completed"],
        "stream": True,
        "wait": 1.5,
        "webhook": None,
    }
    assert _fill(request, values) == []
    assert request.input.text == '{"x":[1,null]}'
    assert list(request.webhook_events_filter) == ["start", "completed"]
    assert (request.stream, request.wait.seconds, request.wait.nanos) == (True, 1, 500_000_000)
    model = model_pb2.CreateModelRequest()
    assert _fill(model, {"visibility": "public"}) == []
    assert model.visibility == model_pb2.VISIBILITY_PUBLIC
    listing = prediction_pb2.ListPredictionsRequest()
    assert _fill(listing, {"created_after": "2026-01-31T12:00:00+02:00", "page_size": 3}) == []
    assert listing.created_after.ToDatetime().hour == 10


@pytest.mark.parametrize(
    ("message", "values", "problem"),
    [
        (
            prediction_pb2.CreatePredictionRequest,
            {"model": "x"},
            ("model", "additional_property_not_allowed"),
        ),
        (prediction_pb2.CreatePredictionRequest, {"version": 1}, ("version", "invalid_type")),
        (
            prediction_pb2.CreatePredictionRequest,
            {"version": "\ud800"},
            ("version", "invalid_type"),
        ),
        (prediction_pb2.CreatePredictionRequest, {"stream": "yes"}, ("stream", "invalid_type")),
        (prediction_pb2.CreatePredictionRequest, {"wait": -1}, ("wait", "number_lte")),
        (prediction_pb2.CreatePredictionRequest, {"wait": 1e300}, ("wait", "number_lte")),
        (
            prediction_pb2.CreatePredictionRequest,
            {"webhook_events_filter": "start"},
            ("webhook_events_filter", "invalid_type"),
        ),
        (
            prediction_pb2.CreatePredictionRequest,
            {"webhook_events_filter": [1]},
            ("webhook_events_filter.0", "invalid_type"),
        ),
        (prediction_pb2.ListPredictionsRequest, {"page_size": 2**31}, ("page_size", "number_lte")),
        (prediction_pb2.ListPredictionsRequest, {"page_size": True}, ("page_size", "invalid_type")),
        (
            prediction_pb2.ListPredictionsRequest,
            {"created_after": "yesterday"},
            ("created_after", "invalid_type"),
        ),
        (
            prediction_pb2.ListPredictionsRequest,
            {"created_after": "9999-12-31T23:59:59-23:59"},
            ("created_after", "invalid_type"),
        ),
        (model_pb2.CreateModelRequest, {"visibility": "secret"}, ("visibility", "enum")),
        (ledger_pb2.AddCreditRequest, {"amount_micros": 1.5}, ("amount_micros", "invalid_type")),
    ],
)
def test_a_wrong_value_names_its_field(
    message: Any, values: dict[str, Any], problem: tuple[str, str]
) -> None:
    assert _fill(message(), values) == [problem]


def test_all_problems_are_told_at_once() -> None:
    request = prediction_pb2.CreatePredictionRequest()
    assert len(_fill(request, {"version": 1, "stream": 2, "other": 3})) == 3
