"""A chassis server and its peer over real gRPC."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from reprise.gateway.v1 import account_pb2, account_pb2_grpc

from services.chassis import server, telemetry
from services.chassis.channels import Peer, open_channel
from services.chassis.errors import (
    FieldViolation,
    Internal,
    InvalidInput,
    RepriseError,
    Unauthenticated,
)
from services.chassis.settings import ServiceSettings
from tests.servers import free_port

WAIT_S = 10
SERVICE = "reprise.gateway.v1.AccountService"


class Accounts(account_pb2_grpc.AccountServiceServicer):
    """Answers who called, or fails as it is told by the token."""

    async def GetAccount(
        self, request: account_pb2.GetAccountRequest, context: grpc.aio.ServicerContext
    ) -> account_pb2.GetAccountResponse:
        who = server.caller(context)
        trace_id = telemetry.current_traceparent()[3:35]
        account = account_pb2.Account(username=who.account_id, name=trace_id)
        return account_pb2.GetAccountResponse(account=account)

    async def Authenticate(
        self, request: account_pb2.AuthenticateRequest, context: grpc.aio.ServicerContext
    ) -> account_pb2.AuthenticateResponse:
        if request.token == "bug":
            raise RuntimeError("a secret text")
        violation = FieldViolation(field="token", description="is bad", kind="invalid")
        raise InvalidInput("the token is bad", reason="BAD_TOKEN", fields=[violation])


@pytest.fixture
async def target() -> AsyncIterator[str]:
    settings = ServiceSettings(mesh_key="right", listen=f"127.0.0.1:{free_port()}")
    add = account_pb2_grpc.add_AccountServiceServicer_to_server
    serving = asyncio.create_task(
        server.serve(settings, servicers=[server.Servicer(add, Accounts(), SERVICE)])
    )
    yield settings.listen
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


@pytest.fixture
async def channel(target: str) -> AsyncIterator[grpc.aio.Channel]:
    async with open_channel(target) as channel:
        yield channel


async def test_a_call_carries_its_account_and_its_trace(channel: grpc.aio.Channel) -> None:
    peer = Peer(channel, "right")
    stub = account_pb2_grpc.AccountServiceStub(channel)
    traceparent = f"00-{'ab' * 16}-{'cd' * 8}-01"
    with telemetry.use_traceparent(traceparent):
        answer = await peer.call(
            stub.GetAccount, account_pb2.GetAccountRequest(), timeout_s=WAIT_S, account_id="ada"
        )
    assert answer.account.username == "ada"
    assert answer.account.name == "ab" * 16


async def test_a_call_without_the_mesh_key_is_refused(channel: grpc.aio.Channel) -> None:
    peer = Peer(channel, "wrong")
    stub = account_pb2_grpc.AccountServiceStub(channel)
    with pytest.raises(Unauthenticated, match="services of the mesh"):
        await peer.call(stub.GetAccount, account_pb2.GetAccountRequest(), timeout_s=WAIT_S)


async def test_an_error_keeps_its_meaning_reason_and_fields(channel: grpc.aio.Channel) -> None:
    peer = Peer(channel, "right")
    stub = account_pb2_grpc.AccountServiceStub(channel)
    with pytest.raises(RepriseError) as caught:
        await peer.call(stub.Authenticate, account_pb2.AuthenticateRequest(), timeout_s=WAIT_S)
    assert type(caught.value) is InvalidInput
    assert caught.value.message == "the token is bad"
    assert caught.value.reason == "BAD_TOKEN"
    assert caught.value.fields == (FieldViolation("token", "is bad", "invalid"),)


async def test_the_text_of_a_fault_of_ours_stays_inside(channel: grpc.aio.Channel) -> None:
    peer = Peer(channel, "right")
    stub = account_pb2_grpc.AccountServiceStub(channel)
    request = account_pb2.AuthenticateRequest(token="bug")
    with pytest.raises(Internal) as caught:
        await peer.call(stub.Authenticate, request, timeout_s=WAIT_S)
    assert "secret" not in caught.value.message
    assert "internal error" in caught.value.message


async def test_health_and_reflection_need_no_key(channel: grpc.aio.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    answer = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    call = reflection.ServerReflectionInfo(iter([request]))
    async for message in call:
        names = {item.name for item in message.list_services_response.service}
    assert SERVICE in names


async def test_a_call_waits_for_a_peer_that_starts_later() -> None:
    listen = f"127.0.0.1:{free_port()}"
    async with open_channel(listen) as channel:
        stub = account_pb2_grpc.AccountServiceStub(channel)
        call = asyncio.create_task(
            Peer(channel, "right").call(
                stub.GetAccount, account_pb2.GetAccountRequest(), timeout_s=WAIT_S, account_id="ada"
            )
        )
        settings = ServiceSettings(mesh_key="right", listen=listen)
        add = account_pb2_grpc.add_AccountServiceServicer_to_server
        serving = asyncio.create_task(
            server.serve(settings, servicers=[server.Servicer(add, Accounts(), SERVICE)])
        )
        assert (await call).account.username == "ada"
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
