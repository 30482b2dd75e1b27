"""The official Python client, unchanged, against a running gateway."""

import io
import json
from pathlib import Path

import pytest
import replicate
from replicate.exceptions import ReplicateError
from reprise.scheduler.v1 import prediction_pb2

from services.chassis.errors import FieldViolation, InvalidInput, ResourceExhausted
from tests.integration.gateway.conftest import official_client
from tests.integration.gateway.process import GatewayProcess

VERSION = "0" * 64


def test_the_account_of_the_token_is_returned(client: replicate.Client) -> None:
    account = client.accounts.current()
    assert (account.type, account.username, account.name) == ("user", "local", "local")


def test_a_blocking_run_returns_the_output(
    client: replicate.Client, gateway: GatewayProcess
) -> None:
    gateway.doubles.scheduler.output = '{"answer":7}'
    assert client.run("acme/echo", input={"text": "hi"}) == {"answer": 7}
    request = gateway.doubles.scheduler.requests[0]
    assert (request.model_owner, request.model_name) == ("acme", "echo")
    assert request.input.text == '{"text":"hi"}'
    assert request.wait.seconds == 55


def test_a_polling_run_returns_the_output(
    client: replicate.Client, gateway: GatewayProcess
) -> None:
    client.poll_interval = 0.01
    gateway.doubles.storage.models.register("acme/echo")
    gateway.doubles.scheduler.output = '"done"'
    assert client.run("acme/echo", input={}, wait=False) == "done"
    assert not gateway.doubles.scheduler.requests[0].HasField("wait")


def test_predictions_are_created_read_listed_and_canceled(
    client: replicate.Client, gateway: GatewayProcess
) -> None:
    gateway.doubles.scheduler.output = None
    created = client.predictions.create(version=VERSION, input={"n": 1})
    assert (created.status, created.output, created.error) == ("starting", None, None)
    assert client.predictions.get(created.id).id == created.id
    assert [item.id for item in client.predictions.list()] == [created.id]
    assert client.predictions.cancel(created.id).status == "canceled"
    assert created.urls is not None
    assert created.urls["get"] == f"{gateway.url}/v1/predictions/{created.id}"


def test_pages_are_followed_to_their_end(client: replicate.Client, gateway: GatewayProcess) -> None:
    for _ in range(101):
        client.predictions.create(version=VERSION, input={})
    first = client.predictions.list()
    assert first.next is not None
    second = client.predictions.list(cursor=first.next)
    assert (len(first.results), len(second.results), second.next) == (100, 1, None)


def test_a_streamed_run_yields_every_chunk_unchanged(
    client: replicate.Client, gateway: GatewayProcess
) -> None:
    chunks = ("Hello", " wor\nld", "", " end\r\n")
    gateway.doubles.scheduler.stream_items = chunks
    events = list(client.stream("acme/echo", input={}))
    assert [event.event.value for event in events] == ["output"] * 4 + ["done"]
    assert [event.data for event in events] == ["Hello", " wor\nld", "", " end\n", "{}"]


def test_a_file_is_uploaded_and_listed_and_deleted(
    client: replicate.Client, gateway: GatewayProcess, tmp_path: Path
) -> None:
    path = tmp_path / "tune.wav"
    path.write_bytes(b"RIFF" + bytes(300_000))
    created = client.files.create(path, metadata={"customer": 7})
    assert (created.name, created.size) == ("tune.wav", 300_004)
    assert created.metadata == {"customer": 7}
    assert gateway.doubles.storage.files.contents[created.id] == path.read_bytes()
    assert client.files.get(created.id).id == created.id
    assert [file.id for file in client.files.list()] == [created.id]
    assert client.files.delete(created.id) is True


def test_a_local_file_as_input_reaches_the_model_as_a_stored_file(
    client: replicate.Client, gateway: GatewayProcess
) -> None:
    client.run("acme/echo", input={"images": [io.BytesIO(b"png")]})
    (file_id,) = gateway.doubles.storage.files.files
    text = gateway.doubles.scheduler.requests[0].input.text
    assert json.loads(text) == {"images": [f"reprise-file:{file_id}"]}


def test_a_file_output_can_be_read(client: replicate.Client, gateway: GatewayProcess) -> None:
    file = gateway.doubles.storage.files.put(b"\x89PNG", content_type="image/png")
    gateway.doubles.scheduler.output = json.dumps({"image": f"reprise-file:{file.id}"})
    output = client.run("acme/echo", input={})
    assert isinstance(output, dict)
    assert output["image"].read() == b"\x89PNG"


def test_models_and_versions_are_found(client: replicate.Client, gateway: GatewayProcess) -> None:
    spec = gateway.doubles.storage.models.register("acme/echo")
    model = client.models.get("acme/echo")
    assert (model.visibility, model.run_count, model.description) == ("public", 0, None)
    assert model.url == f"{gateway.url}/acme/echo"
    version = model.latest_version
    assert version is not None
    assert version.id == spec.version_id
    assert version.openapi_schema["components"]["schemas"]["Output"] == {"title": "Output"}
    assert model.versions.get(spec.version_id).cog_version == "0.16.0"
    assert [item.id for item in model.versions.list()] == [spec.version_id]
    assert [item.name for item in client.models.list()] == ["echo"]
    made = client.models.create("local", "new", visibility="private", hardware="cpu")
    assert made.visibility == "private"


def test_hardware_is_a_bare_array(client: replicate.Client) -> None:
    assert [item.sku for item in client.hardware.list()] == ["cpu"]


def test_an_unknown_token_is_told_so_in_replicates_words(gateway: GatewayProcess) -> None:
    with official_client(gateway, "invalid") as stranger, pytest.raises(ReplicateError) as caught:
        stranger.accounts.current()
    assert (caught.value.status, caught.value.title) == (401, "Unauthenticated")
    assert caught.value.detail == "You did not pass a valid authentication token"


def test_invalid_input_names_each_field(client: replicate.Client, gateway: GatewayProcess) -> None:
    gateway.doubles.scheduler.error = InvalidInput(
        "input does not fit",
        fields=[FieldViolation("input", "text is required", "required")],
    )
    with pytest.raises(ReplicateError) as caught:
        client.predictions.create(version=VERSION, input={})
    assert (caught.value.status, caught.value.title) == (422, "Input validation failed")
    assert caught.value.detail == "- input: text is required\n"


def test_missing_credit_is_402(client: replicate.Client, gateway: GatewayProcess) -> None:
    gateway.doubles.scheduler.error = ResourceExhausted(
        "This run needs 0.06 USD.", reason="INSUFFICIENT_CREDIT"
    )
    with pytest.raises(ReplicateError) as caught:
        client.run("acme/echo", input={})
    assert (caught.value.status, caught.value.title) == (402, "Insufficient credit")


def test_a_failed_prediction_raises_its_error(
    client: replicate.Client, gateway: GatewayProcess
) -> None:
    gateway.doubles.scheduler.output = None
    created = client.predictions.create(version=VERSION, input={})
    prediction = gateway.doubles.scheduler.predictions[created.id]
    prediction.error = "ran out of memory"
    prediction.status = prediction_pb2.PREDICTION_STATUS_FAILED
    created.reload()
    assert (created.status, created.error) == ("failed", "ran out of memory")
