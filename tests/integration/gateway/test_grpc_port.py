"""The public gRPC port with typed stubs."""

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status
from reprise.billing.v1 import ledger_pb2, ledger_pb2_grpc
from reprise.gateway.v1 import account_pb2, account_pb2_grpc
from reprise.scheduler.v1 import prediction_pb2, prediction_pb2_grpc
from reprise.storage.v1 import artifact_pb2, artifact_pb2_grpc, model_pb2, model_pb2_grpc
from reprise.wire.v1 import json_pb2

from services.chassis import channels
from services.chassis.errors import FieldViolation, InvalidInput
from services.gateway.routes import PUBLIC_SERVICES
from tests.integration.gateway.process import TOKEN, GatewayProcess

MINE = (("authorization", f"Bearer {TOKEN}"),)


@pytest.fixture
def channel(gateway: GatewayProcess):  # type: ignore[no-untyped-def]
    with grpc.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
        yield channel


def test_a_typed_call_reaches_the_owner_as_the_tokens_account(
    channel: grpc.Channel, gateway: GatewayProcess
) -> None:
    stub = prediction_pb2_grpc.PredictionServiceStub(channel)
    request = prediction_pb2.CreatePredictionRequest(input=json_pb2.Json(text="{}"))
    created = stub.CreatePrediction(request, metadata=MINE).prediction
    assert created.output.text == '"ok"'
    assert gateway.doubles.scheduler.owners[created.id] == "local"
    seen = stub.WatchPrediction(
        prediction_pb2.WatchPredictionRequest(prediction_id=created.id), metadata=MINE
    )
    assert next(seen).prediction.id == created.id


def test_the_gateways_own_service_answers_too(channel: grpc.Channel) -> None:
    stub = account_pb2_grpc.AccountServiceStub(channel)
    answer = stub.GetAccount(account_pb2.GetAccountRequest(), metadata=MINE)
    assert answer.account.username == "local"


def test_nobody_gets_in_without_a_token_or_by_naming_an_account(channel: grpc.Channel) -> None:
    stub = prediction_pb2_grpc.PredictionServiceStub(channel)
    for metadata in ((), ((channels.ACCOUNT, "local"),), (("authorization", "Bearer nope"),)):
        with pytest.raises(grpc.RpcError) as caught:
            stub.ListPredictions(prediction_pb2.ListPredictionsRequest(), metadata=metadata)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_methods_of_the_mesh_do_not_exist_here(channel: grpc.Channel) -> None:
    stub = ledger_pb2_grpc.LedgerServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.SettleHolds(ledger_pb2.SettleHoldsRequest(), metadata=MINE)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.RpcError) as caught:
        account_pb2_grpc.AccountServiceStub(channel).Authenticate(
            account_pb2.AuthenticateRequest(token=TOKEN), metadata=MINE
        )
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_status_and_details_pass_through_unchanged(
    channel: grpc.Channel, gateway: GatewayProcess
) -> None:
    gateway.doubles.scheduler.error = InvalidInput(
        "does not fit", fields=[FieldViolation("input.n", "must be less", "number_lte")]
    )
    stub = prediction_pb2_grpc.PredictionServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.CreatePrediction(prediction_pb2.CreatePredictionRequest(), metadata=MINE)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(caught.value)
    request = error_details_pb2.BadRequest()
    assert any(detail.Unpack(request) for detail in status.details)
    assert request.field_violations[0].field == "input.n"


def test_streams_of_blobs_and_versions_pass_both_ways(
    channel: grpc.Channel, gateway: GatewayProcess
) -> None:
    content = bytes(300_000)
    file = gateway.doubles.storage.artifacts.put("predict.py", content)
    del gateway.doubles.storage.artifacts.blobs[file.digest]
    header = artifact_pb2.BlobHeader(digest=file.digest, size_bytes=len(content))
    parts = [artifact_pb2.UploadBlobRequest(header=header)]
    parts += [
        artifact_pb2.UploadBlobRequest(chunk=content[i : i + 2**16])
        for i in range(0, 300_000, 2**16)
    ]
    artifact_pb2_grpc.ArtifactServiceStub(channel).UploadBlob(iter(parts), metadata=MINE)
    assert gateway.doubles.storage.artifacts.blobs[file.digest] == content
    request = model_pb2.CreateVersionRequest(owner="local", name="m", files=[file])
    steps = list(model_pb2_grpc.ModelServiceStub(channel).CreateVersion(request, metadata=MINE))
    assert [step.WhichOneof("result") for step in steps] == ["step", "version"]


def test_reflection_and_health_name_the_public_services(channel: grpc.Channel) -> None:
    names = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert names == {
        *(service.full_name for service in PUBLIC_SERVICES),
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    health = health_pb2_grpc.HealthStub(channel)
    answer = health.Check(health_pb2.HealthCheckRequest(service=PUBLIC_SERVICES[0].full_name))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
