"""A gateway as the CLI calls it: the public gRPC port with an API token."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from reprise.billing.v1 import ledger_pb2_grpc
from reprise.gateway.v1 import account_pb2_grpc
from reprise.scheduler.v1 import prediction_pb2_grpc
from reprise.storage.v1 import artifact_pb2_grpc, file_pb2_grpc, model_pb2_grpc

from cli.data_dir import DataDir

MESSAGE_SIZE_MAX = 64 * 1024 * 1024
CALL_TIMEOUT_S = 60.0


class CallFailed(Exception):
    """The gateway refused, or could not be reached; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the gateway is, and as whom to call it."""

    grpc: str
    url: str
    token: str
    authority: Path | None

    @classmethod
    def find(cls, data_path: Path) -> "Endpoint":
        """From REPRISE_GRPC and REPRISE_API_TOKEN, else from the mesh that runs on the folder."""
        token = os.environ.get("REPRISE_API_TOKEN", "")
        target = os.environ.get("REPRISE_GRPC", "")
        url = os.environ.get("REPRISE_BASE_URL", "")
        if target and token:
            authority = os.environ.get("SSL_CERT_FILE") if url.startswith("https:") else None
            return cls(target, url, token, Path(authority) if authority else None)
        state = DataDir(data_path).read_state()
        if state is None:
            raise CallFailed(
                f"no mesh runs on {data_path}; start one with `reprise up`, name its folder with "
                "--data, or set REPRISE_GRPC (host:port) and REPRISE_API_TOKEN"
            )
        is_tls = state.url.startswith("https:")
        authority_path = Path(state.data, "tls", "ca.pem") if is_tls else None
        return cls(state.grpc, state.url, token or state.token, authority_path)


class Client:
    """Typed stubs of the public services."""

    def __init__(self, channel: grpc.aio.Channel, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.accounts = account_pb2_grpc.AccountServiceStub(channel)
        self.artifacts = artifact_pb2_grpc.ArtifactServiceStub(channel)
        self.files = file_pb2_grpc.FileServiceStub(channel)
        self.ledger = ledger_pb2_grpc.LedgerServiceStub(channel)
        self.models = model_pb2_grpc.ModelServiceStub(channel)
        self.predictions = prediction_pb2_grpc.PredictionServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {endpoint.token}"),)

    async def call(
        self, method: Callable[..., Any], request: Any, timeout_s: float = CALL_TIMEOUT_S
    ) -> Any:
        """One call; the request may be an iterator of messages where the rpc takes a stream."""
        try:
            return await method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise CallFailed(explain(error, self.endpoint)) from error

    async def stream(self, method: Callable[..., Any], request: Any) -> AsyncIterator[Any]:
        """The messages of a server-streaming call."""
        call = method(request, metadata=self._metadata)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise CallFailed(explain(error, self.endpoint)) from error
        finally:
            call.cancel()


@asynccontextmanager
async def connect(endpoint: Endpoint) -> AsyncIterator[Client]:
    """A client for the time of one command."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", MESSAGE_SIZE_MAX),
        ("grpc.max_send_message_length", MESSAGE_SIZE_MAX),
    ]
    if endpoint.authority is None:
        channel = grpc.aio.insecure_channel(endpoint.grpc, options=options)
    else:
        credentials = grpc.ssl_channel_credentials(endpoint.authority.read_bytes())
        channel = grpc.aio.secure_channel(endpoint.grpc, credentials, options=options)
    async with channel:
        yield Client(channel, endpoint)


def explain(error: grpc.aio.AioRpcError, endpoint: Endpoint) -> str:
    """What went wrong and what to do, from the status and its details."""
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return f"{endpoint.grpc} cannot be reached ({error.details()}); is the mesh up?"
    lines = [error.details() or error.code().name]
    for violation in _violations(error):
        line = f"{violation.field}: {violation.description}"
        if violation.description not in lines[0]:
            lines.append(f"  {line}")
    return "\n".join(lines)


def _violations(error: grpc.aio.AioRpcError) -> list[Any]:
    violations: list[Any] = []
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin" or not isinstance(value, bytes):
            continue
        for detail in status_pb2.Status.FromString(value).details:
            request = error_details_pb2.BadRequest()
            if detail.Unpack(request):
                violations.extend(request.field_violations)
    return violations
