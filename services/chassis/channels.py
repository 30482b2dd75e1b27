"""Calls to peers: connection, deadline, retry, and statuses back to our errors."""

import json
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any, TypeVar

import grpc

from services.chassis import errors, telemetry

MESH_KEY = "reprise-mesh-key"
ACCOUNT = "reprise-account"
OPERATOR = "reprise-operator"
REQUEST_ID = "reprise-request-id"
TRACEPARENT = "traceparent"

MESSAGE_SIZE_MAX = 64 * 1024 * 1024

_RETRY = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "waitForReady": True,
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 3,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.service_config", _RETRY),
    ("grpc.enable_retries", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", MESSAGE_SIZE_MAX),
    ("grpc.max_send_message_length", MESSAGE_SIZE_MAX),
    # A service may answer from another process after a restart: never share connections.
    ("grpc.use_local_subchannel_pool", 1),
]

R = TypeVar("R")


def open_channel(target: str) -> grpc.aio.Channel:
    """A channel that waits for its peer, follows its restarts and retries what is unavailable."""
    return grpc.aio.insecure_channel(target, options=_OPTIONS)


class Peer:
    """A service of the mesh as another one calls it."""

    def __init__(self, channel: grpc.aio.Channel, mesh_key: str) -> None:
        self.channel = channel
        self._mesh_key = mesh_key

    async def call(
        self,
        method: Callable[..., Any],
        request: object,
        *,
        timeout_s: float,
        account_id: str = "",
        is_operator: bool = False,
        request_id: str = "",
    ) -> Any:
        """One unary call. Safe to repeat: every rpc of the mesh is idempotent by its ids."""
        metadata = self.metadata(account_id, is_operator, request_id)
        try:
            return await method(request, timeout=timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise errors.from_rpc(error) from error

    async def stream(
        self,
        method: Callable[..., Any],
        request: object | AsyncIterable[object],
        *,
        timeout_s: float | None = None,
        account_id: str = "",
        is_operator: bool = False,
        request_id: str = "",
    ) -> AsyncIterator[Any]:
        """The answers of a server-streaming call."""
        metadata = self.metadata(account_id, is_operator, request_id)
        call = method(request, timeout=timeout_s, metadata=metadata)
        try:
            async for answer in call:
                yield answer
        except grpc.aio.AioRpcError as error:
            raise errors.from_rpc(error) from error
        finally:
            call.cancel()

    def metadata(
        self, account_id: str = "", is_operator: bool = False, request_id: str = ""
    ) -> tuple[tuple[str, str], ...]:
        """What every call between services carries."""
        metadata = [(MESH_KEY, self._mesh_key)]
        if account_id:
            metadata.append((ACCOUNT, account_id))
        if is_operator:
            metadata.append((OPERATOR, "1"))
        if request_id:
            metadata.append((REQUEST_ID, request_id))
        if traceparent := telemetry.current_traceparent():
            metadata.append((TRACEPARENT, traceparent))
        return tuple(metadata)
