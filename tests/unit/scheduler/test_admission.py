"""The shape of a create, before any other service is asked."""

import pytest
from google.protobuf.duration_pb2 import Duration
from reprise.scheduler.v1 import prediction_pb2

from services.chassis.errors import InvalidInput
from services.scheduler.admission import Application, read_request
from services.scheduler.settings import SchedulerSettings

SETTINGS = SchedulerSettings(mesh_key="k", storage_target="s", billing_target="b")


def read(**fields: object) -> Application:
    request = prediction_pb2.CreatePredictionRequest(**({"version": "a/b"} | fields))  # type: ignore[arg-type]  # fields by name
    return read_request(request, account_id="bob", request_id="r", settings=SETTINGS)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"version": ""}, "version"),
        ({"version": "x" * 600}, "version"),
        ({"model_owner": "a", "model_name": "b"}, "version"),
        ({"webhook": "ftp://example.com"}, "webhook"),
        ({"webhook": "https://"}, "webhook"),
        ({"webhook": "http://[broken"}, "webhook"),
        ({"webhook": "https://e.com/" + "x" * 3000}, "webhook"),
        ({"webhook_events_filter": ["begin"]}, "webhook_events_filter"),
        ({"cancel_after": Duration(seconds=4)}, "cancel_after"),
        ({"cancel_after": Duration(seconds=86_401)}, "cancel_after"),
        ({"input": {"text": "x" * (SETTINGS.input_size_max + 1)}}, "input"),
    ],
)
def test_each_refusal_names_its_field(fields: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(**fields)
    assert caught.value.fields[0].field == field


def test_the_route_of_a_model_means_its_latest_version() -> None:
    assert read(version="", model_owner="a", model_name="b").reference == "a/b"


def test_waits_are_clamped_and_inputs_may_be_left_out() -> None:
    application = read(wait=Duration(seconds=900))
    assert application.wait_s == SETTINGS.wait_max_s
    assert application.input == "{}"
    assert read().wait_s == 0
    assert read(cancel_after=Duration(seconds=5)).cancel_after_s == 5


def test_the_id_is_the_same_for_the_same_request_of_the_same_account_only() -> None:
    request = prediction_pb2.CreatePredictionRequest(version="a/b")
    ids = {
        read_request(request, account_id=account, request_id=key, settings=SETTINGS).prediction_id
        for account, key in [("bob", "r"), ("bob", "r"), ("bob", "s"), ("carol", "r")]
    }
    assert len(ids) == 3
    assert all(len(item) == 26 and item.isalnum() and item.islower() for item in ids)
    anonymous = [
        read_request(request, account_id="bob", request_id="", settings=SETTINGS).prediction_id
        for _ in range(2)
    ]
    assert anonymous[0] != anonymous[1]
